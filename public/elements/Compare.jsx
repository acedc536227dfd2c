// Continuations of the prompt at several temperatures, side by side.
import { useEffect, useRef, useSyncExternalStore } from 'react';

function Compare() {
  const { compared } = useSyncExternalStore(page.subscribe, page.get);
  const section = useRef(null);
  useEffect(() => {
    section.current?.scrollIntoView({ block: 'start' });
  }, [compared]);
  if (!compared) return null;
  return (
    <section id="compare" ref={section} aria-label="Comparison">
      <div className="row">
        <h2>The prompt, continued at several temperatures</h2>
        <button type="button" aria-label="Close the comparison" onClick={() => page.set({ compared: null })}>Close</button>
      </div>
      <div className="columns">
        {compared.map(({ temperature, run, tokens, share }) => (
          <div key={run}>
            <h3>Temperature {temperature}</h3>
            <p className="share">{share === undefined ? '…' : `${page.percent(share)} copied from the story`}</p>
            <div className="prose">{tokens.map((token) => token.text).join('')}</div>
          </div>
        ))}
      </div>
    </section>
  );
}

export default page.component('Compare', Compare);
