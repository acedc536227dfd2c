// The place of a token's popover: in view, below or above the token, never over it.

export function placeBeside(token, width, height, view, gap = 6) {
  const below = view.height - token.bottom - 2 * gap;
  const above = token.top - 2 * gap;
  const goesBelow = below >= Math.min(height, above);
  const maxHeight = Math.max(40, Math.min(height, goesBelow ? below : above));
  const left = Math.max(gap, Math.min(token.left, view.width - width - gap));
  return { left, maxHeight, top: goesBelow ? token.bottom + gap : token.top - gap - maxHeight };
}
