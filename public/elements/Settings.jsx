// The line above the input: settings that apply immediately.
import { useState, useSyncExternalStore } from 'react';

// A number field. A typed value applies once it is valid, and is clamped when the field loses focus.
function Field({ name, value }) {
  const { label, min, max, step, help } = page.field(name);
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
      <input id="set-seed" value={shown} placeholder="random" inputMode="numeric" aria-invalid={!usable} aria-describedby="seed-note" onChange={type} />
      <span id="seed-note" role="alert">{usable ? '' : `Digits only, at most ${page.config.seed_digits}. Using a random seed.`}</span>
    </div>
  );
}

function Settings() {
  const { settings } = useSyncExternalStore(page.subscribe, page.get);
  const [open, setOpen] = useState(false);
  const [resets, setResets] = useState(0); // a reset also clears a seed that is not valid
  if (!settings) return null;
  const sampled = settings.temperature > 0;
  return (
    <div id="settings-line">
      <button type="button" id="settings-button" aria-expanded={open} onClick={() => setOpen(!open)}>
        {page.summary(settings)} <span aria-hidden="true">{open ? '▾' : '▴'}</span>
      </button>
      {open && (
        <div id="settings" role="group" aria-label="Settings">
          <div className="row">
            {Object.entries(page.presets()).map(([name, preset]) => (
              <button key={name} type="button" onClick={() => page.change(preset)}>{name}</button>
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
