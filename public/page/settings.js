// The settings of generation: their limits, presets, and what is made of anything that comes in.

export const LIMITS = {
  temperature: { label: 'Temperature', short: 'T', min: 0, max: 5, step: 0.1, help: '0: always the most probable token. 1: the model’s own probabilities. 5: nearly equal ones.' },
  top_k: { label: 'Top-k', short: 'top-k', min: 0, max: 200, step: 1, help: 'Draw from the k most probable tokens. 0: from all.' },
  top_p: { label: 'Top-p', short: 'top-p', min: 0.05, max: 1, step: 0.05, help: 'Draw from the fewest tokens with this probability together. 1: from all.' },
  max_new_tokens: { label: 'Tokens', short: 'tokens', min: 1, max: 500, step: 1, help: 'How many to generate. A token is about four letters.' }
};
export const USUAL = { temperature: 1, top_k: 50, top_p: 1, max_new_tokens: 120, seed: '' };
export const PRESETS = {
  greedy: { temperature: 0 },
  usual: { temperature: USUAL.temperature, top_k: USUAL.top_k, top_p: 1 },
  wild: { temperature: 2, top_k: 0, top_p: 1 }
};

export const seedIsUsable = (seed) => /^[0-9]{0,30}$/.test(seed);

// A number within its limits, whole or to two places; the usual one for what is no number.
export function clamp(name, value) {
  const { min, max, step } = LIMITS[name];
  const number = typeof value === 'string' && value.trim() === '' ? NaN : Number(value);
  if (value === null || typeof value === 'object' || Number.isNaN(number)) return USUAL[name];
  return Number(Math.min(Math.max(number, min), max).toFixed(step < 1 ? 2 : 0));
}

// Settings from anything, such as what stood in the browser's storage or in a link.
export function readSettings(raw) {
  const settings = {};
  for (const name of Object.keys(LIMITS)) settings[name] = clamp(name, raw?.[name]);
  const seed = String(raw?.seed ?? '').trim();
  return { ...settings, seed: seedIsUsable(seed) ? seed : '' };
}

// One line that says all that has an effect.
export function summary(settings) {
  const parts = [`T ${settings.temperature}`];
  if (settings.temperature > 0) {
    if (settings.top_k) parts.push(`top-k ${settings.top_k}`);
    if (settings.top_p < 1) parts.push(`top-p ${settings.top_p}`);
  }
  parts.push(settings.max_new_tokens === 1 ? '1 token' : `${settings.max_new_tokens} tokens`);
  if (settings.temperature > 0 && settings.seed) parts.push(`seed ${settings.seed}`);
  return parts.join(' · ');
}
