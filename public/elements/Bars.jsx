// The next token's probabilities at one place in the text, as bars that move with the settings.
import { useEffect, useRef, useSyncExternalStore } from 'react';

const SHOWN = 10;

function Slider({ name, settings }) {
  const { label, min, max, step } = page.field(name);
  return (
    <label className="slider">
      {label}
      <input type="range" aria-label={label} min={min} max={max} step={step} value={settings[name]} onChange={(event) => page.change({ [name]: page.clamp(name, event.target.value) })} />
      <output>{settings[name]}</output>
    </label>
  );
}

const Bar = ({ label, prob }) => (
  <tr>
    <th scope="row">{label}</th>
    <td className="bar"><div style={{ width: `${100 * prob}%` }} /></td>
    <td className="number">{page.percent(prob)}</td>
  </tr>
);

function Bars() {
  const { bars, settings } = useSyncExternalStore(page.subscribe, page.get);
  const section = useRef(null);
  const shown = page.document();
  const next = shown && bars !== null ? page.look('next', page.read(bars)) : undefined;
  useEffect(() => {
    section.current?.scrollIntoView({ block: 'start' }); // when it opens, and when the answer is there
  }, [bars, next === undefined]);
  if (!shown || bars === null) return null;
  const before = page.tokensOf(shown).slice(0, bars).map((token) => token.text).join('');
  const { probs, others } = next ? page.nextTokenProbs(next, settings) : {};
  return (
    <section id="bars" ref={section} aria-label="The next token">
      <div className="row">
        <h2>What could come after</h2>
        <button type="button" aria-label="Close the bars" onClick={() => page.set({ bars: null })}>Close</button>
      </div>
      <div className="quote">{before.slice(-60)}</div>
      <div className="sliders">
        <Slider name="temperature" settings={settings} />
        {settings.temperature > 0 && <Slider name="top_k" settings={settings} />}
        {settings.temperature > 0 && <Slider name="top_p" settings={settings} />}
      </div>
      {next ? (
        <table>
          <tbody>
            {next.top.slice(0, SHOWN).map(({ id, label }, i) => <Bar key={id} label={label} prob={probs[i]} />)}
            <Bar label="all others" prob={others + probs.slice(SHOWN).reduce((sum, prob) => sum + prob, 0)} />
          </tbody>
        </table>
      ) : (
        <p>Asking the model…</p>
      )}
    </section>
  );
}

export default page.component('Bars', Bars);
