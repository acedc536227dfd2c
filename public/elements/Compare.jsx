// Tab of the panel: three continuations of the prompt, each at a temperature of its own.
import { useState, useSyncExternalStore } from 'react';

function Text({ temperature, setTemperature, number, text, prompt, busy }) {
  const { label, min, max, step } = page.field('temperature');
  const share = text?.finished ? page.look('copied', [...prompt, ...text.tokens].map(({ id }) => id)) : undefined;
  return (
    <section className="compared" aria-label={`Text ${number}`}>
      <label className="slider">
        <span>{label}</span>
        <input type="range" min={min} max={max} step={step} value={temperature} onChange={(event) => setTemperature(Number(event.target.value))} />
        <output>{temperature}</output>
      </label>
      {text && (
        <>
          <div className="prose">{text.tokens.map((token) => token.text).join('')}</div>
          <div className="row">
            <span className="legend">{share && `${page.percent(share.share)} of this text is copied from the story.`}</span>
            <button type="button" aria-disabled={busy} onClick={() => page.keep(text)}>Keep this one</button>
          </div>
        </>
      )}
    </section>
  );
}

function Compare() {
  const { compared, running } = useSyncExternalStore(page.subscribe, page.get);
  const [temperatures, setTemperatures] = useState(compared?.map((text) => text.temperature) ?? page.config.compared);
  const busy = running !== null;
  const prompt = page.promptOf(page.document());
  return (
    <>
      <p>The same beginning, continued at three temperatures.</p>
      <button type="button" id="run-compare" className="primary" aria-disabled={busy} onClick={() => busy || page.compare(temperatures)}>
        {compared ? 'Write three again' : 'Write three texts'}
      </button>
      {temperatures.map((temperature, i) => (
        <Text
          key={i}
          number={i + 1}
          temperature={temperature}
          setTemperature={(changed) => setTemperatures(temperatures.map((old, j) => (j === i ? changed : old)))}
          text={compared?.[i]}
          prompt={prompt}
          busy={busy}
        />
      ))}
    </>
  );
}

page.component('Compare', Compare);
export default () => null; // Panel shows it
