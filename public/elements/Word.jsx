// Tabs of the panel: what a word could have been, and what could come next, with the settings.
import { useSyncExternalStore } from 'react';

const SHOWN = 10;
const MODEL = { temperature: 1, top_k: 0, top_p: 1 }; // settings that change nothing
const sum = (list) => list.reduce((total, prob) => total + prob, 0);

// The most probable tokens here; the filled bars are with the settings, the outlines the model's own.
function Choices({ index, token, next }) {
  const { settings, running, editing } = page.state;
  const { probs, others } = page.nextTokenProbs(next, settings);
  const own = page.nextTokenProbs(next, MODEL);
  const { Bars } = page.components;
  const title = token ? 'Use this instead, and continue from here' : 'Add this, and continue';
  const button = ({ id, text, label }, i) => {
    const off = running !== null || editing !== null || id === token?.id;
    const choose = () => page.choose(index, { id, text, label, rank: i + 1, logprob: Math.log(own.probs[i]), prob: probs[i] });
    return <button type="button" className="alternative" aria-disabled={off} title={title} onClick={() => off || choose()}>{label}</button>;
  };
  const row = (key, label, outline, bar) => ({ key, label, outline, bar, own: key === token?.id, cells: [page.percent(outline), page.percent(bar)] });
  const rows = next.top.slice(0, SHOWN).map((other, i) => row(other.id, button(other, i), own.probs[i], probs[i]));
  const rest = row('others', 'all others', own.others + sum(own.probs.slice(SHOWN)), others + sum(probs.slice(SHOWN)));
  return <Bars heads={[token ? 'Could have been' : 'Could come next', 'model', 'with your settings']} rows={[...rows, rest]} />;
}

// What the model gave the token that stands in the text.
function Gave({ index, token }) {
  // A token of the prompt was not generated, so it has no score yet.
  const asked = token.logprob === undefined && index > 0 ? page.look('scores', page.read(index, index + 1)) : undefined;
  const scored = asked ? asked.tokens.at(-1) : token.logprob !== undefined && token;
  const rank = scored && (scored.rank === 1 ? 'first choice' : `choice number ${scored.rank}`);
  const settings = scored?.prob === undefined ? '' : `; with your settings ${page.percent(scored.prob)}`;
  const waiting = index === 0 ? 'The first token has no probability, because nothing comes before it.' : 'Asking the model…';
  return <p id="gave" aria-live="polite">
    <b className="label">{token.label}</b>{' '}
    {scored ? `The model gave it ${page.percent(Math.exp(scored.logprob))} (${rank})${settings}.` : waiting}
    {token.draft && ' It came from a draft, copied from the story, that the model accepted.'}
  </p>;
}

function Word() {
  const { tab, settings } = useSyncExternalStore(page.subscribe, page.get);
  const tokens = page.tokensOf(page.document());
  const index = tab === 'next' ? tokens.length : page.looked();
  const token = tokens[index];
  const next = index > 0 ? page.look('next', page.read(index)) : undefined;
  const before = tokens.slice(0, index).map(({ text }) => text).join('');
  const { Field } = page.components;
  return <>
    <div className="quote">{before.length > 70 && '…'}<bdi>{before.slice(-70)}</bdi><b>{token ? token.text : ' …?'}</b></div>
    {token && <Gave index={index} token={token} />}
    {next && <>
      <Choices index={index} token={token} next={next} />
      <p className="legend">Click or tap a word to use it: the model continues from there. Change the settings, and the bars follow.</p>
      {['temperature', ...(settings.temperature > 0 ? ['top_k', 'top_p'] : [])].map((name) => <Field key={name} name={name} id={`${name}-here`} value={settings[name]} />)}
    </>}
  </>;
}

page.component('Choices', Choices); // also of Guess
export default page.part('Word', Word);
