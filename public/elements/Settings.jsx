// The line above the input: settings that apply at once.
import { useState, useSyncExternalStore } from 'react';

// A number that is typed: it applies when it is whole, and is put right when the field is left.
function Field({ name, value }) {
  const { label, min, max, step, help } = page.LIMITS[name];
  const [typed, setTyped] = useState(null);
  const type = (event) => {
    setTyped(event.target.value);
    const number = Number(event.target.value);
    if (event.target.value !== '' && number >= min && number <= max) page.change({ [name]: page.clamp(name, number) });
  };
  const leave = () => {
    if (typed !== null && typed !== '') page.change({ [name]: page.clamp(name, typed) });
    setTyped(null);
  };
  return (
    <div className="field">
      <label htmlFor={`set-${name}`}>{label}</label>
      <input id={`set-${name}`} type="number" min={min} max={max} step={step} value={typed ?? value} title={help} onChange={type} onBlur={leave} />
      <input type="range" aria-label={`${label}, slider`} min={min} max={max} step={step} value={value} onChange={(event) => page.change({ [name]: page.clamp(name, event.target.value) })} />
    </div>
  );
}

function Seed({ seed }) {
  const [typed, setTyped] = useState(null);
  const shown = typed ?? seed;
  const usable = page.seedIsUsable(shown.trim());
  const type = (event) => {
    const value = event.target.value;
    setTyped(page.seedIsUsable(value.trim()) ? null : value);
    page.change({ seed: page.seedIsUsable(value.trim()) ? value.trim() : '' });
  };
  return (
    <div className="field">
      <label htmlFor="set-seed">Seed</label>
      <input id="set-seed" value={shown} placeholder="a new one each time" inputMode="numeric" aria-invalid={!usable} aria-describedby="seed-note" onChange={type} />
      <span id="seed-note" role="alert">{usable ? '' : 'A seed is a whole number. This one is not used.'}</span>
    </div>
  );
}

function Settings() {
  const { settings } = useSyncExternalStore(page.subscribe, page.get);
  const [open, setOpen] = useState(false);
  const [resets, setResets] = useState(0); // also empties a seed that is typed and not used
  const sampled = settings.temperature > 0;
  return (
    <div id="settings-line">
      <button type="button" id="settings-button" aria-expanded={open} aria-label={`Settings: ${page.summary(settings)}`} onClick={() => setOpen(!open)}>
        {page.summary(settings)} <span aria-hidden="true">{open ? '▾' : '▴'}</span>
      </button>
      {open && (
        <div id="settings" role="group" aria-label="Settings">
          <div className="row">
            {Object.entries(page.PRESETS).map(([name, preset]) => (
              <button key={name} type="button" id={`preset-${name}`} onClick={() => page.change(preset)}>{name}</button>
            ))}
            <button type="button" id="reset" onClick={() => (page.reset(), setResets(resets + 1))}>Reset all</button>
          </div>
          <Field name="temperature" value={settings.temperature} />
          {sampled && <Field name="top_k" value={settings.top_k} />}
          {sampled && <Field name="top_p" value={settings.top_p} />}
          <Field name="max_new_tokens" value={settings.max_new_tokens} />
          {sampled && <Seed key={resets} seed={settings.seed} />}
        </div>
      )}
    </div>
  );
}

export default page.component('Settings', Settings);
