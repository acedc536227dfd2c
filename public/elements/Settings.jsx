// The line at the bottom: settings that apply immediately, and the state of the connection.
import { useState, useSyncExternalStore } from 'react';

const MANY = 6; // from this many people writing at the same time, the page says so

// A setting as a number and a slider. A typed number applies immediately, clamped; the field shows that when it loses focus.
function Field({ name, id = name, value, change = (value) => page.change({ [name]: value }) }) {
  const { label, min, max, step, help } = page.field(name);
  const [typed, setTyped] = useState(null);
  const type = ({ target: { value } }) => (setTyped(value), Number.isNaN(page.readNumber(value)) || change(page.clamp(name, value)));
  return <div className="field" title={help}>
    <label htmlFor={`set-${id}`}>{label}</label>
    <input id={`set-${id}`} inputMode="decimal" autoComplete="off" value={typed ?? value} onChange={type} onBlur={() => setTyped(null)} />
    <input type="range" aria-label={`${label}, slider`} min={min} max={max} step={step} value={value} onChange={(event) => change(page.clamp(name, event.target.value))} />
  </div>;
}

function Seed({ seed }) {
  const [typed, setTyped] = useState(null);
  const shown = typed ?? seed;
  const usable = page.seedIsUsable(shown.trim());
  const type = ({ target: { value } }) => (setTyped(value), page.change({ seed: page.seedIsUsable(value.trim()) ? value.trim() : '' }));
  return <div className="field">
    <label htmlFor="set-seed">Seed</label>
    <input id="set-seed" value={shown} placeholder="random" inputMode="numeric" aria-invalid={!usable} aria-describedby="seed-note" onChange={type} />
    <span id="seed-note" className="problem" role="alert">{usable ? '' : `Digits only, at most ${page.config.seed_digits}. Using a random seed.`}</span>
  </div>;
}

function Settings() {
  const { settings, offline, interrupted, running, people } = useSyncExternalStore(page.subscribe, page.get);
  const [resets, setResets] = useState(0); // a reset also clears a seed that is not valid
  if (!settings) return null;
  const names = ['temperature', ...(settings.temperature > 0 ? ['top_k', 'top_p'] : []), 'max_new_tokens'];
  const promise = interrupted === null ? '' : 'Your text will continue once the page is online. ';
  return <div id="settings-line">
    {offline && <p id="offline" role="alert" className="problem">Connection lost. Trying again … {promise}If it stays offline, check that the app is running.</p>}
    {running && people >= MANY && <p className="legend" role="status">{people} people are writing, so it may be slower.</p>}
    <button type="button" id="settings-button" popovertarget="settings">{page.summary(settings)} <span aria-hidden="true">▴</span></button>
    <div id="settings" popover="auto" role="group" aria-label="Settings">
      <div className="row">
        {Object.entries(page.presets()).map(([name, preset]) => <button key={name} type="button" onClick={() => page.change(preset)}>{name}</button>)}
        <button type="button" id="reset" onClick={() => (page.change(page.defaults()), setResets(resets + 1))}>Reset all</button>
      </div>
      {names.map((name) => <Field key={name} name={name} value={settings[name]} />)}
      {settings.temperature > 0 && <Seed key={resets} seed={settings.seed} />}
    </div>
  </div>;
}

page.component('Field', Field); // also of the panel
export default page.component('Settings', Settings);
