// Tab of the panel: the tokens that the chosen token attends to, in each head of each layer.
import { useEffect, useSyncExternalStore } from 'react';

const STRIPES = 24; // of a thumbnail
const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

// The head that attends most clearly to one earlier word. The first layer is left out: its heads see
// single tokens, not yet what they mean in the text.
function clearest(all, tokens) {
  const clarity = (weights) => Math.max(0, ...weights.slice(1, -3).filter((_, i) => /\p{L}/u.test(tokens[i + 1].text)));
  const heads = all.flatMap((heads, layer) => heads.map((weights, head) => ({ layer, head, value: layer && clarity(weights) })));
  const { layer, head } = heads.reduce((one, other) => (other.value > one.value ? other : one));
  return { layer, head };
}

// A thumbnail: the last tokens from left to right, darker where the head attends more.
function stripes(weights) {
  const shown = weights.slice(-STRIPES);
  const most = Math.max(...shown, 1);
  const place = (i) => `${((100 * i) / shown.length).toFixed(1)}%`;
  const colours = shown.map((weight, i) => `rgba(0, 114, 178, ${(weight / most).toFixed(2)}) ${place(i)} ${place(i + 1)}`);
  return { backgroundImage: `linear-gradient(to right, ${colours})` };
}

const nameOf = (head) => (head === 'average' ? 'The average of all heads' : `Layer ${head.layer + 1}, head ${head.head + 1}`);

function Head({ layer, head, weights, chosen }) {
  const isChosen = chosen.layer === layer && chosen.head === head;
  const canFocus = isChosen || (chosen === 'average' && layer + head === 0);
  const name = nameOf({ layer, head });
  return <button type="button" id={`head-${layer}-${head}`} className="thumbnail" aria-label={name} title={name} aria-pressed={isChosen} tabIndex={canFocus ? 0 : -1} style={stripes(weights)} onClick={() => page.set({ head: { layer, head } })} />;
}

function Attention() {
  const { head } = useSyncExternalStore(page.subscribe, page.get);
  const { layers, heads } = page.config;
  const index = page.looked();
  const read = page.read(index, index + 1);
  const tokens = page.tokensOf(page.document()).slice(index + 1 - read.length, index + 1);
  const all = page.look('attention', read);
  useEffect(() => {
    if (all && head === null) page.set({ head: clearest(all, tokens) });
  }, [all, head]);
  if (!all || !head) return <p>Asking the model…</p>;
  const most = page.headWeights(all, head).map((weight, i) => ({ weight, label: tokens[i].label })).sort((a, b) => b.weight - a.weight).slice(0, 3);
  const onKeyDown = (event) => {
    if (!(event.key in STEPS) || head === 'average') return;
    event.preventDefault();
    const to = { layer: (head.layer + STEPS[event.key][0] + layers) % layers, head: (head.head + STEPS[event.key][1] + heads) % heads };
    page.set({ head: to });
    document.getElementById(`head-${to.layer}-${to.head}`).focus();
  };
  return (
    <>
      <p aria-live="polite">
        {nameOf(head)}: <b className="label">{tokens.at(-1).label}</b> attends to{' '}
        {most.map(({ weight, label }, i) => <span key={i}>{i > 0 && ', '}<b className="label">{label}</b> {page.percent(weight)}</span>)}
      </p>
      <div id="heads" role="group" aria-label="Heads" style={{ gridTemplateColumns: `auto repeat(${heads}, minmax(0, 1fr))` }} onKeyDown={onKeyDown}>
        {all.map((row, layer) => [
          <span key={layer} className="legend">{layer + 1}</span>,
          ...row.map((weights, number) => <Head key={`${layer} ${number}`} layer={layer} head={number} weights={weights} chosen={head} />)
        ])}
      </div>
      <div className="row">
        <span className="legend">Rows: layers. Cells: heads. The stripes are the last {STRIPES} tokens; at the right end is the word itself.</span>
        <button type="button" aria-pressed={head === 'average'} onClick={() => page.set({ head: 'average' })}>Average</button>
      </div>
    </>
  );
}

page.component('Attention', Attention);
export default () => null; // Panel shows it
