// What the pages give to their scripts, for `tsc` (.ci/web/check). Nothing of it is served.

type Value = number | null | undefined;

interface Curve {
  name: string;
  steps: number[];
  low: Value[];
  high: Value[];
  mean: Value[];
}

interface Chart {
  title: string;
  exact: boolean;
  curves: Curve[];
  left_out: string[];
}

type Mark = [step: number, name: string];

interface Curves {
  diagrams?: Chart[];
  marks?: Mark[];
}

interface CurveWords {
  step: string;
  numbers: string;
  described: string;
}

interface SampleRow {
  index: number;
  prompt: string;
  files: (string | null)[];
}

interface Status {
  status: string;
  facts: Record<string, string | null>;
  now: string;
  share: number | null;
}

interface RunData extends Curves {
  here: string;
  words: Record<'gone' | 'failed' | 'at' | 'not_drawn' | 'missing' | 'samples' | 'alone', string> & {
    curves: CurveWords;
  };
  samples: {steps: number[]; rows: SampleRow[]};
  cursor: string;
  status: Status;
}

interface RunEvent {
  event: string;
  step?: number | null;
  files?: string[];
}

interface News {
  cursor: string;
  status: Status;
  anew?: boolean;
  rows?: ({step: number} & Record<string, Value>)[];
  events?: RunEvent[];
  log?: string;
  log_anew?: boolean;
}

/** What became of a file that was sent. */
interface Told {
  name: string;
  state: string;
  text: string;
}

/** The JSON answer of the pages of a dataset; each has some of this. */
interface Answer {
  ok: boolean;
  status: number;
  detail?: string;
  version?: string;
  step?: string;
  theirs?: string;
  now?: Record<string, [version: string, caption: string]>;
  failed?: number;
  offset?: number;
  hash?: string;
  told?: {state?: string; count?: number; files?: Told[]};
}

/** A file to send, with the name of the folder that it was in, and of the outermost one. */
type Sent = File & {place?: string; root?: string; shown: ReturnType<typeof import('/static/upload.js').row>};

/** Of the key `script` in texts.json, what a page needs. */
interface Texts {
  ended: Record<string, string>;
  lost: Record<'silent' | 'login' | 'again', string>;
  new: {offline: string};
  curves: CurveWords;
  datasets: Record<
    | 'first'
    | 'saved'
    | 'unsaved'
    | 'failed'
    | 'offline'
    | 'conflict'
    | 'undone'
    | 'not_undone'
    | 'sending'
    | 'checking'
    | 'waits'
    | 'cancel'
    | 'cancelled'
    | 'reload'
    | 'of',
    string
  > & {states: Record<string, string>};
}
