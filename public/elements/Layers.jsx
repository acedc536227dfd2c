// Tab of the panel: what each layer would have said ("logit lens").
import { useSyncExternalStore } from 'react';

function Layers() {
  useSyncExternalStore(page.subscribe, page.get);
  const index = page.looked();
  const token = page.tokensOf(page.document())[index];
  const layers = page.look('layers', page.read(index));
  if (!layers) return <p>{index === 0 ? 'The first token has no prediction, because nothing comes before it.' : 'Asking the model…'}</p>;
  const { Bars } = page.components;
  const rows = layers.map(({ id, label, prob }, layer) => ({
    key: layer, own: id === token.id, bar: prob, label: layer ? `layer ${layer}` : 'the embedding',
    cells: [<span className="label">{label}</span>, page.percent(prob)]
  }));
  return <>
    <p>What the model would predict in place of <b className="label">{token.label}</b> if it stopped after each layer:</p>
    <Bars heads={['After', 'first choice', 'probability']} rows={rows} />
    <p className="legend">Bold: the word in the text.</p>
  </>;
}

export default page.part('Layers', Layers);
