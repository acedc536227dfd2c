// Tabs of the panel: what a word could have been, and what could come next, with the settings.
import { useSyncExternalStore } from 'react';

const SHOWN = 10;
const MODEL = { temperature: 1, top_k: 0, top_p: 1 }; // settings that change nothing

function Slider({ name, settings }) {
  const { label, help, min, max, step } = page.field(name);
  return (
    <label className="slider" title={help}>
      <span>{label}</span>
      <input type="range" min={min} max={max} step={step} value={settings[name]} onChange={(event) => page.change({ [name]: page.clamp(name, event.target.value) })} />
      <output>{settings[name]}</output>
    </label>
  );
}

// A bar: the probability with the settings; its outline: the model's own.
const Bar = ({ model, prob }) => (
  <td className="bar" aria-hidden="true">
    <div className="by-model" style={{ width: `${100 * model}%` }} />
    <div className="by-settings" style={{ width: `${100 * prob}%` }} />
  </td>
);

function Bars({ index, token, next, settings, busy }) {
  const { probs, others } = page.nextTokenProbs(next, settings);
  const own = page.nextTokenProbs(next, MODEL);
  const sum = (list) => list.slice(SHOWN).reduce((total, prob) => total + prob, 0);
  const choose = (other, i) =>
    !busy && other.id !== token?.id &&
    page.choose(index, { id: other.id, text: other.text, label: other.label, rank: i + 1, logprob: Math.log(own.probs[i]), prob: probs[i] });
  return (
    <table className="bars">
      <thead>
        <tr><th scope="col">{token ? 'Could have been' : 'Could come next'}</th><td /><th scope="col">model</th><th scope="col">with your settings</th></tr>
      </thead>
      <tbody>
        {next.top.slice(0, SHOWN).map((other, i) => (
          <tr key={other.id} className={other.id === token?.id ? 'own' : ''}>
            <th scope="row">
              <button
                type="button"
                className="alternative"
                aria-disabled={busy || other.id === token?.id}
                title={token ? 'Use this instead, and continue from here' : 'Add this, and continue'}
                onClick={() => choose(other, i)}
              >
                {other.label}
              </button>
            </th>
            <Bar model={own.probs[i]} prob={probs[i]} />
            <td>{page.percent(own.probs[i])}</td>
            <td>{page.percent(probs[i])}</td>
          </tr>
        ))}
        <tr>
          <th scope="row">all others</th>
          <Bar model={own.others + sum(own.probs)} prob={others + sum(probs)} />
          <td>{page.percent(own.others + sum(own.probs))}</td>
          <td>{page.percent(others + sum(probs))}</td>
        </tr>
      </tbody>
    </table>
  );
}

// What the model gave the token that stands in the text.
function Gave({ index, token }) {
  // A token of the prompt was not generated, so it has no score yet.
  const asked = token.logprob === undefined && index > 0 ? page.look('scores', page.read(index, index + 1)) : undefined;
  const scored = asked ? asked.tokens.at(-1) : token.logprob !== undefined && token;
  const rank = scored && (scored.rank === 1 ? 'first choice' : `choice number ${scored.rank}`);
  return (
    <p id="gave" aria-live="polite">
      <b className="label">{token.label}</b>{' '}
      {scored
        ? `The model gave it ${page.percent(Math.exp(scored.logprob))} (${rank})${scored.prob === undefined ? '' : `; with your settings ${page.percent(scored.prob)}`}.`
        : index === 0
          ? 'The first token has no probability, because nothing comes before it.'
          : 'Asking the model…'}
      {token.draft && ' It was drafted from the story, and the model accepted it.'}
    </p>
  );
}

function Word() {
  const state = useSyncExternalStore(page.subscribe, page.get);
  const tokens = page.tokensOf(page.document());
  const { settings } = state;
  const index = state.tab === 'next' ? tokens.length : page.looked();
  if (index === null || index > tokens.length) return <p>Click or tap a word in the text to see what else it could have been.</p>;
  const token = tokens[index];
  const next = index > 0 ? page.look('next', page.read(index)) : undefined;
  const before = tokens.slice(0, index).map(({ text }) => text).join('');
  return (
    <>
      <div className="quote">{before.length > 70 && '…'}{before.slice(-70)}<b>{token ? token.text : ' …?'}</b></div>
      {token && <Gave index={index} token={token} />}
      {next && <Bars index={index} token={token} next={next} settings={settings} busy={state.running !== null} />}
      {index > 0 && !next && <p>Asking the model…</p>}
      {next && (
        <>
          <p className="legend">Click a word to use it: the model continues from there. Move the settings, and the bars follow.</p>
          <Slider name="temperature" settings={settings} />
          {settings.temperature > 0 && <Slider name="top_k" settings={settings} />}
          {settings.temperature > 0 && <Slider name="top_p" settings={settings} />}
        </>
      )}
    </>
  );
}

page.component('Word', Word);
export default () => null; // Panel shows it
