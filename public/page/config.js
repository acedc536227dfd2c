// What app.py is configured with; the element Connection fills it in before the page shows anything:
// context_length, layers, heads, vocabulary, limits, seed_digits, max_ids, compared, starters.
export const config = {};
