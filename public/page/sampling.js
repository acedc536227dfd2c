// The next token's probabilities with the settings, as `next_token_probs` in utils.py computes them.

// `top`: tokens with logits, best first; `rest`: [count, logit] for groups of all other tokens.
// Returns `probs` of `top`, and `others`, the probability of the rest.
export function nextTokenProbs({ top, rest }, { temperature, top_k, top_p }) {
  if (temperature === 0) return { probs: top.map((_, i) => Number(i === 0)), others: 0 };
  const weigh = (logit) => Math.exp((logit - top[0].logit) / temperature);
  const kept = top_k ? top.slice(0, top_k) : top;
  const groups = top_k ? [] : rest;
  const weights = kept.map(({ logit }) => weigh(logit));
  const restWeight = groups.reduce((sum, [count, logit]) => sum + count * weigh(logit), 0);
  const total = weights.reduce((sum, weight) => sum + weight, restWeight);
  let probs = weights.map((weight) => weight / total);
  let others = restWeight / total;
  if (top_p < 1) {
    let before = 0;
    probs = probs.map((prob) => {
      const keep = before < top_p;
      before += prob;
      return keep ? prob : 0;
    });
    others = Math.min(others, Math.max(0, top_p - before)); // the fewest that reach top_p
    const sum = probs.reduce((total, prob) => total + prob, others);
    probs = probs.map((prob) => prob / sum);
    others /= sum;
  }
  return { probs: [...probs, ...top.slice(kept.length).map(() => 0)], others };
}

export function percent(prob) {
  if (prob < 1 && prob >= 0.995) return '>99%'; // only 1 is 100%
  if (prob > 0 && prob < 0.00095) return '<0.1%';
  return `${(100 * prob).toFixed(prob > 0 && prob < 0.0995 ? 1 : 0)}%`;
}
