// Tab of the panel: the tokens that the chosen token attends to, in each head of each layer.
import { useEffect, useSyncExternalStore } from 'react';

const STRIPES = 24; // of a thumbnail

// The head that attends most clearly to one earlier word. The first layer is left out: its heads see
// single tokens, not yet what they mean in the text.
function clearest([first, ...later], tokens) {
  const clarity = later.flat().map((weights) => Math.max(0, ...weights.slice(1, -3).filter((_, i) => /\p{L}/u.test(tokens[i + 1].text))));
  return first.length + clarity.indexOf(Math.max(...clarity));
}

// A thumbnail: the last tokens from left to right, bluer where the head attends more.
function stripes(weights) {
  const shown = weights.slice(-STRIPES);
  const most = Math.max(...shown, 1);
  const place = (i) => `${((100 * i) / shown.length).toFixed(1)}%`;
  const colours = shown.map((weight, i) => `rgba(0, 114, 178, ${(weight / most).toFixed(2)}) ${place(i)} ${place(i + 1)}`);
  return { backgroundImage: `linear-gradient(to right, ${colours})` };
}

const nameOf = (head, count = page.config.n_heads) => (head === 'average' ? 'The average of all heads' : `Layer ${Math.floor(head / count) + 1}, head ${(head % count) + 1}`);

function Attention() {
  const { head } = useSyncExternalStore(page.subscribe, page.get);
  const index = page.looked();
  const read = page.read(index, index + 1);
  const tokens = page.tokensOf(page.document()).slice(index + 1 - read.length, index + 1);
  const all = page.look('attention', read);
  useEffect(() => void (all && head === null && page.set({ head: clearest(all, tokens) })), [all, head]);
  if (!all || head === null) return <p>Asking the model…</p>;
  const most = page.headWeights(all, head).map((weight, i) => ({ weight, label: tokens[i].label })).sort((a, b) => b.weight - a.weight).slice(0, 3);
  const cell = (weights, number, name = nameOf(number)) =>
    <input key={number} type="radio" name="head" className="thumbnail" aria-label={name} title={name} checked={head === number} style={stripes(weights)} onChange={() => page.set({ head: number })} />;
  return <>
    <p aria-live="polite">
      {nameOf(head)}: <b className="label">{tokens.at(-1).label}</b> attends to{' '}
      {most.map(({ weight, label }, i) => <span key={i}>{i > 0 && ', '}<b className="label">{label}</b> {page.percent(weight)}</span>)}
    </p>
    <div id="heads" role="radiogroup" aria-label="Heads" style={{ gridTemplateColumns: `auto repeat(${all[0].length}, minmax(0, 1fr))` }}>
      {all.map((row, layer) => [<span key={layer} className="legend">{layer + 1}</span>, row.map((weights, number) => cell(weights, layer * row.length + number))])}
    </div>
    <div className="row">
      <span className="legend">Rows: layers. Cells: heads. Stripes: the last {STRIPES} tokens, up to the word itself. Stronger blue: more attention.</span>
      <button type="button" aria-pressed={head === 'average'} onClick={() => page.set({ head: 'average' })}>Average</button>
    </div>
  </>;
}

export default page.part('Attention', Attention);
