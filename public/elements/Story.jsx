// Tab of the panel: the story, marked where the text copies it.
import { useEffect, useMemo, useRef, useSyncExternalStore } from 'react';

// The story in parts, each with the passages that copy it. Passages may overlap. The server counts
// code points; strings here count UTF-16 units, two for an emoji.
function split(story, runs) {
  const characters = [...story];
  const spans = runs.map(({ story_text_start: start, story_text, start: token }) => ({ start, end: start + [...story_text].length, token }));
  const cuts = [...new Set([0, characters.length, ...spans.flatMap(({ start, end }) => [start, end])])].sort((a, b) => a - b);
  return cuts.slice(1).map((end, i) => ({
    text: characters.slice(cuts[i], end).join(''),
    tokens: spans.filter((span) => span.start <= cuts[i] && end <= span.end).map(({ token }) => token)
  }));
}

function Story() {
  const { running } = useSyncExternalStore(page.subscribe, page.get);
  const current = useRef(null);
  const answer = running === null ? page.copied() : undefined;
  const looked = page.looked();
  const run = answer?.runs.find(({ start, length }) => start <= looked && looked < start + length);
  const parts = useMemo(() => (page.story ? split(page.story, answer?.runs ?? []) : []), [page.story, answer?.runs.length, answer?.share]);
  useEffect(() => {
    page.loadStory();
  }, []);
  useEffect(() => {
    current.current?.scrollIntoView({ block: 'center' });
  }, [run?.start, parts.length]);
  const first = parts.findIndex(({ tokens }) => tokens.includes(run?.start));
  return (
    <>
      <p className="legend" aria-live="polite">
        {run
          ? `${run.length} tokens, from paragraph ${run.paragraph} of the story.`
          : 'This is all that the model has ever read. Blue: passages of six tokens or more that your text copies.'}
      </p>
      <div id="story-text" className="prose">
        {parts.map(({ text, tokens }, i) =>
          tokens.length ? (
            <mark key={i} ref={i === first ? current : null} className={tokens.includes(run?.start) ? 'current' : ''}>{text}</mark>
          ) : (
            text
          )
        )}
      </div>
    </>
  );
}

page.component('Story', Story);
export default () => null; // Panel shows it
