// Tab of the panel: what each layer would have said ("logit lens").
import { useSyncExternalStore } from 'react';

function Layers() {
  useSyncExternalStore(page.subscribe, page.get);
  const index = page.looked();
  const token = page.tokensOf(page.document())[index];
  const layers = page.look('layers', page.read(index));
  if (!layers) return <p>{index === 0 ? 'The first token has no prediction, because nothing comes before it.' : 'Asking the model…'}</p>;
  return (
    <>
      <p>The model could stop after each layer and guess. Before <b className="label">{token.label}</b>, it would say:</p>
      <table className="bars">
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
