// The inside of one continuation: facts, each token's probabilities, and what was copied from the story.
// `props` comes from `inside` in app.py: facts, tokens, runs, share. A <bdi> stands where signs that
// turn the direction of a text would also turn what is beside it.
import { useRef, useState } from 'react';

const percent = (p) => {
  if (p < 1 && p >= 0.995) return '> 99 %'; // 100 % is for all of it
  if (p > 0 && p < 0.00095) return '< 0.1 %';
  return `${(100 * p).toFixed(p > 0 && p < 0.0995 ? 1 : 0)} %`;
};

// From probable to improbable: more colour, and a stronger line for those who do not see the colour.
const LEVELS = [
  { least: 0.5, name: '50 % or more', style: {} },
  { least: 0.1, name: '10 to 50 %', style: { background: 'rgba(213, 94, 0, 0.12)', borderBottom: '2px dotted' } },
  { least: 0.01, name: '1 to 10 %', style: { background: 'rgba(213, 94, 0, 0.28)', borderBottom: '2px dashed' } },
  { least: 0, name: 'below 1 %', style: { background: 'rgba(213, 94, 0, 0.48)', borderBottom: '2px solid' } }
];
const COPIED = { background: 'rgba(0, 114, 178, 0.28)', borderBottom: '2px solid' };

const muted = { color: 'hsl(var(--muted-foreground))' };
const small = { fontSize: '0.875rem' };
const box = { border: '1px solid hsl(var(--border))', borderRadius: 8, padding: '8px 12px' };
// Stays in sight while a long text above it is looked through.
const details = {
  ...box,
  ...small,
  position: 'sticky',
  bottom: 0,
  maxHeight: '35vh',
  overflowY: 'auto',
  background: 'hsl(var(--background))'
};
const prose = { whiteSpace: 'pre-wrap', overflowWrap: 'anywhere', lineHeight: 1.9 };

// A line of parts, one of which can be chosen: with the mouse, a finger, or Tab and the arrow keys.
function Choosable({ parts, chosen, chosenStyle, onChoose, label }) {
  const refs = useRef([]);
  const stops = parts.map((part, i) => (part.describe ? i : -1)).filter((i) => i >= 0);
  const onKeyDown = (event, i) => {
    const at = stops.indexOf(i);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: stops.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = stops[Math.min(Math.max(to, 0), stops.length - 1)];
    refs.current[next].focus();
  };
  return (
    <div role="group" aria-label={label} style={prose}>
      {parts.map((part, i) =>
        part.describe ? (
          <span
            key={i}
            ref={(node) => (refs.current[i] = node)}
            role="button"
            aria-label={part.describe}
            aria-pressed={i === chosen}
            tabIndex={i === (stops.includes(chosen) ? chosen : stops[0]) ? 0 : -1}
            onFocus={() => onChoose(i)}
            onMouseEnter={() => onChoose(i)}
            onClick={() => onChoose(i)}
            onKeyDown={(event) => onKeyDown(event, i)}
            style={{ cursor: 'pointer', ...part.style, ...(i === chosen && chosenStyle) }}
          >
            {part.text}
          </span>
        ) : (
          <span key={i}>{part.text}</span>
        )
      )}
    </div>
  );
}

// A line end is shown by a sign, so that there is something to point at; so is a token that only
// begins a character, or has only signs of no width.
const visible = (text) => text.replaceAll('\n', '↵\n').replace(/^\p{Cf}*$/u, '$&▯');

function Probabilities({ tokens }) {
  const [chosen, setChosen] = useState(0);
  const parts = tokens.map((token) => {
    const prob = Math.exp(token.logprob);
    return {
      text: visible(token.text),
      style: LEVELS.find((level) => prob >= level.least).style,
      describe: `${token.label}, ${percent(prob)}, rank ${token.rank}`
    };
  });
  const token = tokens[chosen];
  const cell = { textAlign: 'right', padding: '0 0 0 12px' };
  return (
    <>
      <p style={small}>
        How probable each token was for the model:{' '}
        {LEVELS.map((level) => (
          <span key={level.name} style={{ ...level.style, marginRight: 12, whiteSpace: 'nowrap' }}>{level.name}</span>
        ))}
      </p>
      <Choosable
        parts={parts}
        chosen={chosen}
        chosenStyle={{ outline: '2px solid', outlineOffset: 1 }}
        onChoose={setChosen}
        label="The tokens of the text"
      />
      <div className="look-details" style={details}>
        <div aria-live="polite">
          <b style={{ fontFamily: 'monospace' }}>{token.label}</b> had {percent(Math.exp(token.logprob))}, rank {token.rank};
          after the settings {percent(token.sampling_prob)}
        </div>
        <table style={{ marginTop: 4 }}>
          <thead>
            <tr style={muted}>
              <th scope="col" style={{ textAlign: 'left', fontWeight: 'normal' }}>most probable</th>
              <th scope="col" style={{ ...cell, fontWeight: 'normal' }}>at temperature 1</th>
              <th scope="col" style={{ ...cell, fontWeight: 'normal' }}>after the settings</th>
            </tr>
          </thead>
          <tbody>
            {token.top_tokens.map(([label, logprob, samplingProb], i) => (
              <tr key={i} style={{ fontWeight: i + 1 === token.rank ? 'bold' : 'normal' }}>
                <td style={{ fontFamily: 'monospace', overflowWrap: 'anywhere' }}>{label}</td>
                <td style={cell}>{percent(Math.exp(logprob))}</td>
                <td style={cell}>{percent(samplingProb)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

function Copied({ tokens, runs, share }) {
  const [chosen, setChosen] = useState(null);
  const longest = Math.max(0, ...runs.map((run) => run.length));
  const parts = [];
  let at = 0; // tokens shown so far; runs can overlap, then the later one begins where the earlier ends
  const textOf = (from, to) => tokens.slice(from, to).map((token) => token.text).join('');
  runs.forEach((run, i) => {
    const start = Math.max(run.start, at);
    if (start > at) parts.push({ text: textOf(at, start) });
    at = run.start + run.length;
    const describe = `Run ${i + 1}: ${run.length} tokens, paragraph ${run.paragraph} of the story`;
    parts.push({ run, describe, style: COPIED, text: [textOf(start, at), <bdi key="number"><sup>{i + 1}</sup></bdi>] });
  });
  if (at < tokens.length) parts.push({ text: textOf(at, tokens.length) });
  const run = parts[chosen]?.run;
  return (
    <>
      <p style={small}>
        {percent(share)} of the tokens stand in the story in <span style={COPIED}>runs of six or more</span>
        {longest > 0 && `, the longest of ${longest} tokens`}.{share < 1 && ' The rest stands in no such run.'}
      </p>
      <Choosable
        parts={parts}
        chosen={chosen}
        chosenStyle={{ background: 'rgba(0, 114, 178, 0.55)' }}
        onChoose={setChosen}
        label="The text, with its copied runs"
      />
      {runs.length > 0 && (
        <div className="look-details" aria-live="polite" style={details}>
          {run ? (
            <>
              <div>{run.length} tokens, from paragraph {run.paragraph} of the story:</div>
              <div style={{ ...prose, lineHeight: 1.5 }}>
                <span style={muted}>… </span>
                <bdi>
                  <span style={muted}>{run.before}</span>
                  <b>{textOf(run.start, run.start + run.length)}</b>
                  <span style={muted}>{run.after}</span>
                </bdi>
                <span style={muted}> …</span>
              </div>
            </>
          ) : (
            'Choose a run to see where it stands in the story.'
          )}
        </div>
      )}
    </>
  );
}

export default function LookInside() {
  const [view, setView] = useState(null);
  const [copied, setCopied] = useState(false);
  const copy = () =>
    navigator.clipboard.writeText(props.tokens.map((token) => token.text).join('')).then(() => setCopied(true));
  const views = { probs: 'Probabilities', copied: 'Copied from the story' };
  return (
    <div style={{ display: 'flex', flexDirection: 'column', gap: 8, maxWidth: '100%' }}>
      <div className="look-facts" style={{ ...small, ...muted }}>{props.facts.join(' · ')}</div>
      {props.tokens.length > 0 && (
        <div role="group" aria-label="Look inside" style={{ ...small, display: 'flex', flexWrap: 'wrap', gap: 8 }}>
          {Object.entries(views).map(([name, label]) => (
            <button
              key={name}
              type="button"
              className={`look-${name}`}
              aria-expanded={view === name}
              onClick={() => setView(view === name ? null : name)}
              style={{ ...box, padding: '4px 12px', background: view === name ? 'hsl(var(--accent))' : 'transparent' }}
            >
              {label}
            </button>
          ))}
          {navigator.clipboard && ( // browsers have none where the page comes over plain HTTP from elsewhere
            <button type="button" className="look-copy" aria-live="polite" onClick={copy} style={{ ...box, padding: '4px 12px' }}>
              {copied ? 'Copied' : 'Copy'}
            </button>
          )}
        </div>
      )}
      {view === 'probs' && <Probabilities tokens={props.tokens} />}
      {view === 'copied' && <Copied tokens={props.tokens} runs={props.runs} share={props.share} />}
    </div>
  );
}
