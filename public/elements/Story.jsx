// Tab of the panel: the story, marked where the text copies it.
import { useEffect, useMemo, useRef, useSyncExternalStore } from 'react';

// The story in parts, each with the passages that copy it. Passages may overlap. The server counts
// code points; strings here count UTF-16 units, two for an emoji.
function split(story, runs) {
  const characters = [...story];
  const spans = runs.map((run) => ({ run: run.start, start: run.story_text_start, end: run.story_text_start + [...run.story_text].length }));
  const cuts = [...new Set([0, characters.length, ...spans.flatMap(({ start, end }) => [start, end])])].sort((a, b) => a - b);
  const copies = (from, to) => spans.filter(({ start, end }) => start <= from && to <= end).map(({ run }) => run);
  return cuts.slice(1).map((end, i) => ({ text: characters.slice(cuts[i], end).join(''), runs: copies(cuts[i], end) }));
}

function Story() {
  const { running, story } = useSyncExternalStore(page.subscribe, page.get);
  const current = useRef(null);
  const answer = running === null ? page.copied() : undefined;
  const looked = page.looked();
  const run = answer?.runs.find(({ start, length }) => start <= looked && looked < start + length);
  const parts = useMemo(() => split(story ?? '', answer?.runs ?? []), [story, JSON.stringify(answer?.runs)]);
  const first = parts.findIndex(({ runs }) => runs.includes(run?.start));
  useEffect(() => void page.loadStory(), []);
  useEffect(() => void current.current?.scrollIntoView({ block: 'center' }), [run?.start, parts]);
  return <>
    <p className="legend" aria-live="polite">
      {run
        ? `${run.length} tokens, from paragraph ${run.paragraph} of the story.`
        : 'The model trained on all but the last tenth. Blue: six or more tokens in a row that your text copies.'}
    </p>
    <div id="story-text" className="prose">
      {parts.map(({ text, runs }, i) =>
        runs.length ? <mark key={i} ref={i === first ? current : null} className={runs.includes(run?.start) ? 'current' : ''}>{text}</mark> : text
      )}
    </div>
  </>;
}

export default page.part('Story', Story);
