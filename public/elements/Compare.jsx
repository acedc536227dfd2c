// Tab of the panel: three continuations of the prompt, each at a temperature of its own.
import { useState, useSyncExternalStore } from 'react';

function Compare() {
  const { compared, running, offline } = useSyncExternalStore(page.subscribe, page.get);
  const [temperatures, setTemperatures] = useState(compared?.map((text) => text.temperature) ?? page.config.compared);
  const busy = running !== null || offline;
  const ids = page.promptOf(page.document()).map(({ id }) => id);
  const texts = `${compared?.[0].ids}` === `${ids}` ? compared : null; // not those of another beginning
  const { Field } = page.components;
  return <>
    <p>The same beginning, continued at three temperatures.</p>
    <button type="button" id="run-compare" className="primary" aria-disabled={busy} onClick={() => busy || page.compare(temperatures)}>
      {texts ? 'Write three again' : 'Write three texts'}
    </button>
    {temperatures.map((temperature, i) => {
      const text = texts?.[i];
      const share = text?.finished && page.look('copied', [...ids, ...text.tokens.map(({ id }) => id)])?.share;
      return <section key={i} className="compared column" aria-label={`Text ${i + 1}`}>
        <Field name="temperature" id={`temperature-${i}`} value={temperature} change={(value) => setTemperatures(temperatures.with(i, value))} />
        {text && <div className="prose">{text.tokens.map((token) => token.text).join('')}</div>}
        {text && <div className="row">
          <span className="legend">{typeof share === 'number' && `${page.percent(share)} of this text is copied from the story.`}</span>
          <button type="button" aria-disabled={busy || !text.finished} onClick={() => busy || !text.finished || page.keep(text)}>Keep this one</button>
        </div>}
      </section>;
    })}
  </>;
}

export default page.part('Compare', Compare);
