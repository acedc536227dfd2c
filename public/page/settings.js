// The sampling settings: how they are shown, and how input is read. Their limits come from app.py.

// What app.py is configured with; the element Connection fills it in before the page shows anything:
// the model's configuration, limits, seed_digits, max_ids, compared, starters, problem.
export const config = {};

export const FIELDS = {
  temperature: { label: 'Temperature', step: 0.1, help: '0: always the most likely token. 1: the model’s own probabilities. Higher: more random.' },
  top_k: { label: 'Top-k', step: 1, help: 'Sample from the k most likely tokens. 0: from all.' },
  top_p: { label: 'Top-p', step: 0.05, help: 'Sample from the fewest tokens whose probabilities add up to p. 1: from all.' },
  max_new_tokens: { label: 'Tokens', step: 1, help: 'How many tokens to generate. A token is about four letters.' }
};

export const field = (name) => ({ ...FIELDS[name], ...config.limits[name] });
export const defaults = () => ({ ...Object.fromEntries(Object.keys(FIELDS).map((name) => [name, config.limits[name].default])), seed: '' });

export function presets() {
  const { temperature, top_k, top_p } = defaults();
  return { 'Most likely': { temperature: 0 }, Normal: { temperature, top_k, top_p }, Wild: { temperature: 2, top_k: 0, top_p: 1 } };
}

export const seedIsUsable = (seed) => /^[0-9]*$/.test(seed) && seed.length <= config.seed_digits;

// A typed number, with a comma or a point; NaN for anything else.
export const readNumber = (typed) => (typed.trim() ? Number(typed.trim().replace(',', '.')) : NaN);

// A number clamped to its limits, whole or with two decimals; the default for anything else.
export function clamp(name, value) {
  const { min, max, step, default: fallback } = field(name);
  const number = readNumber(String(value));
  return Number.isNaN(number) ? fallback : Number(Math.min(Math.max(number, min), max).toFixed(step < 1 ? 2 : 0));
}

// Settings from any input, such as the browser's storage or a link.
export function readSettings(raw) {
  const settings = Object.fromEntries(Object.keys(FIELDS).map((name) => [name, clamp(name, raw?.[name])]));
  const seed = String(raw?.seed ?? '').trim();
  return { ...settings, seed: seedIsUsable(seed) ? seed : '' };
}

// One line with every setting that has an effect.
export function summary({ temperature, top_k, top_p, max_new_tokens, seed }) {
  const sampled = temperature > 0;
  return `Settings: ${[
    `temperature ${temperature}`,
    sampled && top_k && `top-k ${top_k}`,
    sampled && top_p < 1 && `top-p ${top_p}`,
    max_new_tokens === 1 ? '1 token' : `${max_new_tokens} tokens`,
    sampled && seed && `seed ${seed}`
  ].filter(Boolean).join(', ')}`;
}
