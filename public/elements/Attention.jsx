// Tab of the panel: the tokens that the chosen token attends to, in each head of each layer.
import { useEffect, useSyncExternalStore } from 'react';

const STRIPES = 24; // of a thumbnail

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
  const colours = shown.map((weight, i) => {
    const colour = `rgba(0, 114, 178, ${(weight / most).toFixed(2)})`;
    return `${colour} ${(100 * i) / shown.length}% ${(100 * (i + 1)) / shown.length}%`;
  });
  return { backgroundImage: `linear-gradient(to right, ${colours.join(', ')})` };
}

function Attention() {
  const { head } = useSyncExternalStore(page.subscribe, page.get);
  const index = page.looked();
  const tokens = page.tokensOf(page.document());
  const read = index === null || index >= tokens.length ? [] : page.read(index, index + 1);
  const all = page.look('attention', read);
  useEffect(() => {
    if (all && head === null) page.set({ head: clearest(all, tokens.slice(index + 1 - read.length)) });
  }, [all, head]);
  if (index === null) return <p>Click or tap a word in the text to see which words before it the model looks at.</p>;
  const weights = all && page.headWeights(all, head);
  const start = index + 1 - read.length;
  const most = weights?.map((weight, i) => ({ weight, token: tokens[start + i] })).sort((a, b) => b.weight - a.weight).slice(0, 3);
  const choose = (layer, head) => {
    page.set({ head: { layer, head } });
    document.getElementById(`head-${layer}-${head}`)?.focus();
  };
  const onKeyDown = (event) => {
    const [down, right] = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key] ?? [];
    if (down === undefined || !head?.head?.toFixed) return;
    event.preventDefault();
    const { layers, heads } = page.config;
    choose((head.layer + down + layers) % layers, (head.head + right + heads) % heads);
  };
  const name = head === 'average' ? 'The average of all heads' : head && `Layer ${head.layer + 1}, head ${head.head + 1}`;
  return (
    <>
      <p aria-live="polite">
        {most && name ? (
          <>
            {name}: <b className="label">{tokens[index].label}</b> attends to{' '}
            {most.map(({ weight, token }, i) => (
              <span key={i}>{i > 0 && ', '}<b className="label">{token.label}</b> {page.percent(weight)}</span>
            ))}
          </>
        ) : (
          'Asking the model…'
        )}
      </p>
      <div id="heads" role="group" aria-label="Heads" style={{ gridTemplateColumns: `auto repeat(${page.config.heads}, minmax(0, 1fr))` }} onKeyDown={onKeyDown}>
        {all?.map((heads, layer) => [
          <span key={layer} className="legend">{layer + 1}</span>,
          ...heads.map((weights, number) => {
            const pressed = head?.layer === layer && head?.head === number;
            return (
              <button
                key={`${layer} ${number}`}
                type="button"
                id={`head-${layer}-${number}`}
                className="thumbnail"
                aria-label={`Layer ${layer + 1}, head ${number + 1}`}
                title={`Layer ${layer + 1}, head ${number + 1}`}
                aria-pressed={pressed}
                tabIndex={pressed || (!head?.layer && !layer && !number) ? 0 : -1}
                style={stripes(weights)}
                onClick={() => choose(layer, number)}
              />
            );
          })
        ])}
      </div>
      <div className="row">
        <span className="legend">
          A row for each layer, a cell for each head. A cell’s stripes are the last {STRIPES} tokens; the right end is the word itself.
        </span>
        <button type="button" aria-pressed={head === 'average'} onClick={() => page.set({ head: 'average' })}>Average</button>
      </div>
    </>
  );
}

page.component('Attention', Attention);
export default () => null; // Panel shows it
