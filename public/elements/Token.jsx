// The popover of the chosen token: its probability, the alternatives, and where it is copied from.
import { useEffect, useLayoutEffect, useRef, useState, useSyncExternalStore } from 'react';

const SHOWN = 8; // alternatives

function Alternatives({ index, token, next, settings, busy }) {
  const { probs } = page.nextTokenProbs(next, settings);
  const own = page.nextTokenProbs(next, { temperature: 1, top_k: 0, top_p: 1 }).probs; // the model's
  return (
    <table>
      <thead>
        <tr><th scope="col">Could have been</th><th scope="col">model</th><th scope="col">with your settings</th></tr>
      </thead>
      <tbody>
        {next.top.slice(0, SHOWN).map((other, i) => (
          <tr key={other.id} className={other.id === token.id ? 'own' : ''}>
            <td>
              <button
                type="button"
                className="alternative"
                disabled={busy || other.id === token.id}
                aria-label={`Continue with ${other.label} instead`}
                onClick={() => page.choose(index, { id: other.id, text: other.text, label: other.label, rank: i + 1, logprob: Math.log(own[i]), prob: probs[i] })}
              >
                {other.label}
              </button>
            </td>
            <td>{page.percent(own[i])}</td>
            <td>{page.percent(probs[i])}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

// Where the text is copied from. The quote is a block, so that its text direction ends with it.
const FromStory = ({ run }) => (
  <div className="from">
    <div>{run.length} tokens, from paragraph {run.paragraph} of the story:</div>
    <div className="quote">{run.before}<b>{run.story_text}</b>{run.after}</div>
    <button type="button" onClick={() => page.openStory({ start: run.story_text_start, length: [...run.story_text].length })}>
      Show it in the story
    </button>
  </div>
);

function usePlace(box, index) {
  const [place, setPlace] = useState({});
  useLayoutEffect(() => {
    const measure = () => {
      const token = document.querySelector(`#text [data-index="${index}"]`);
      if (!box.current || !token) return;
      const { width } = box.current.getBoundingClientRect();
      const view = { width: document.documentElement.clientWidth, height: innerHeight };
      const next = page.placeBeside(token.getBoundingClientRect(), width, box.current.scrollHeight + 2, view);
      setPlace((old) => (JSON.stringify(old) === JSON.stringify(next) ? old : next));
    };
    measure();
    addEventListener('scroll', measure, true);
    addEventListener('resize', measure);
    const watch = new ResizeObserver(measure);
    for (const child of box.current?.children ?? []) watch.observe(child);
    return () => {
      removeEventListener('scroll', measure, true);
      removeEventListener('resize', measure);
      watch.disconnect();
    };
  });
  return place;
}

function Details({ index, token, state }) {
  const box = useRef(null);
  const place = usePlace(box, index);
  const next = index > 0 ? page.look('next', page.read(index)) : undefined;
  const runs = state.view === 'copied' && state.running === null ? page.copied()?.runs ?? [] : [];
  const run = runs.find((run) => run.start <= index && index < run.start + run.length);
  // A token of the prompt was not generated, so it has no score yet.
  const asked = token.logprob === undefined && index > 0 ? page.look('scores', page.read(index, index + 1)) : undefined;
  const scored = asked ? asked.tokens.at(-1) : token.logprob !== undefined && token;
  useEffect(() => {
    const onKey = (event) => {
      if (event.key !== 'Escape') return;
      page.close();
      document.querySelector(`#text [data-index="${index}"]`)?.focus();
    };
    const onPointer = (event) => {
      if (!event.target.closest('#token-details, #text .token')) page.close();
    };
    addEventListener('keydown', onKey);
    addEventListener('pointerdown', onPointer);
    return () => {
      removeEventListener('keydown', onKey);
      removeEventListener('pointerdown', onPointer);
    };
  }, [index]);
  return (
    <div id="token-details" ref={box} role="dialog" aria-label="This token" style={place}>
      <div className="inner">
        <div aria-live="polite">
          <b className="label">{token.label}</b>{' '}
          {scored
            ? `The model gave it ${page.percent(Math.exp(scored.logprob))} (${scored.rank === 1 ? 'first choice' : `rank ${scored.rank}`})${scored.prob === undefined ? '' : `; with your settings ${page.percent(scored.prob)}`}`
            : index === 0
              ? 'The first token has no probability, because nothing comes before it.'
              : 'Asking the model…'}
        </div>
        {run && <FromStory run={run} />}
        {next && <Alternatives index={index} token={token} next={next} settings={state.settings} busy={state.running !== null} />}
        <div className="row">
          {index > 0 && <button type="button" onClick={() => page.set({ bars: index, open: false })}>Show as bars</button>}
          <button type="button" onClick={page.close}>Close</button>
        </div>
      </div>
    </div>
  );
}

function TokenDetails() {
  const state = useSyncExternalStore(page.subscribe, page.get);
  const shown = page.document();
  const token = shown && state.open && state.chosen !== null ? page.tokensOf(shown)[state.chosen] : undefined;
  return token ? <Details index={state.chosen} token={token} state={state} /> : null;
}

export default page.component('Token', TokenDetails);
