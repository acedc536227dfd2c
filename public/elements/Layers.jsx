// Tab of the panel: what each layer would have said ("logit lens").
import { useSyncExternalStore } from 'react';

function Layers() {
  useSyncExternalStore(page.subscribe, page.get);
  const tokens = page.tokensOf(page.document());
  const index = page.looked();
  if (index === null || index >= tokens.length) return <p>Click or tap a word in the text to see how the model arrived at it.</p>;
  if (index === 0) return <p>The first token has no prediction, because nothing comes before it.</p>;
  const token = tokens[index];
  const layers = page.look('layers', page.read(index));
  if (!layers) return <p>Asking the model…</p>;
  return (
    <>
      <p>Before <b className="label">{token.label}</b>, the model could stop after each layer and guess. This is what it would say:</p>
      <table className="bars" id="layers">
        <thead><tr><th scope="col">After</th><th scope="col">first choice</th><td /><th scope="col">probability</th></tr></thead>
        <tbody>
          {layers.map(({ id, label, prob }, layer) => (
            <tr key={layer} className={id === token.id ? 'own' : ''}>
              <th scope="row">{layer ? `layer ${layer}` : 'the embedding'}</th>
              <td className="label">{label}</td>
              <td className="bar" aria-hidden="true"><div className="by-settings" style={{ width: `${100 * prob}%` }} /></td>
              <td>{page.percent(prob)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p className="legend">Bold: the word that stands in the text.</p>
    </>
  );
}

page.component('Layers', Layers);
export default () => null; // Panel shows it
