package bench

// Trace is what was stamped of one request. The caller owns it, gives it its
// capacity with NewTrace and reuses it with Reset; nothing that fills it
// allocates. All times are nanoseconds on the clock of Now; 0 means "was not
// stamped".
type Trace struct {
	Start     int64 `json:"start_ns"`                // t0: just before the first byte is written, or the engine is called
	Connect   int64 `json:"connect_ns,omitempty"`    // how long opening this request's connection took, before Start; 0: one was open
	Sent      int64 `json:"sent_ns,omitempty"`       // the request was handed over entirely
	FirstByte int64 `json:"first_byte_ns,omitempty"` // first byte of the response (HTTP only)
	FirstLine int64 `json:"first_line_ns,omitempty"` // first SSE line, content or not (HTTP streaming only)
	End       int64 `json:"end_ns"`                  // last byte of the answer, or the moment of failure

	// Marks say how many tokens had arrived by when; both fields never fall.
	// Streaming: one mark per event (HTTP) or per token (in process). Sync:
	// one mark, at End.
	Marks []Mark `json:"marks"`

	PromptTokens int         `json:"prompt_tokens"` // as the backend counted, BOS included
	OutputTokens int         `json:"output_tokens"`
	Counted      TokenSource `json:"counted"` // who counted OutputTokens
	Finish       Finish      `json:"finish"`

	Text   []byte  `json:"-"` // the answer; results keeps it as a string
	Tokens []int32 `json:"-"` // its token ids where the backend tells them
	// PromptIDs are the prompt's token ids, BOS included, where the backend was
	// asked for ids and tells those too.
	PromptIDs []int32 `json:"-"`

	Phases Phases `json:"phases_ns,omitzero"` // where the time went inside the engine, when it can tell
	Server Server `json:"server,omitzero"`    // the server's own account, when it gives one

	Events    int `json:"events"`               // SSE events with content; tokens in process; 1 for sync
	Coalesced int `json:"coalesced,omitempty"`  // events that shared a receive stamp with the one before
	Unstamped int `json:"unstamped,omitempty"`  // reads without a kernel receive stamp, timed by the user clock
	MarksLost int `json:"marks_lost,omitempty"` // marks that did not fit; > 0 makes token timings unusable

	// Warnings are things about this request that a report must not hide, by
	// class (see Warn*).
	Warnings []Warning `json:"warnings,omitempty"`
}

// Mark says: N tokens had arrived by T.
type Mark struct {
	T int64 // nanoseconds, clock of Now
	N int32 // cumulative tokens; for HTTP streams without per-event counts, cumulative events
}

// Phases splits a request's time inside the engine; nanoseconds. Their sum and
// the request's time differ by the remainder, which reports show: the loop
// choosing other slots' tokens, and hand-over between threads.
type Phases struct {
	Tokenize   int64 `json:"tokenize"`
	Queue      int64 `json:"queue"`   // until its first batch, and later batches of other requests (a prefill chunk while this one decodes)
	Prefill    int64 `json:"prefill"` // batches that held prompt tokens of this request
	Decode     int64 `json:"decode"`  // batches that held one sampled token of this request
	Sampling   int64 `json:"sampling"`
	Detokenize int64 `json:"detokenize"`
}

// Sum is the time accounted for, in nanoseconds.
func (p Phases) Sum() int64 {
	return p.Tokenize + p.Queue + p.Prefill + p.Decode + p.Sampling + p.Detokenize
}

// Server is a server's own account of a request (llama-server: "timings";
// TGI: header fields of a sync answer, in whole milliseconds). Not every server
// tells all of it; the times are in nanoseconds.
type Server struct {
	PromptTokens int   `json:"prompt_tokens,omitempty"`
	OutputTokens int   `json:"output_tokens,omitempty"`
	CachedTokens int   `json:"cached_tokens,omitempty"` // prompt tokens taken from a prefix cache
	Tokenize     int64 `json:"tokenize_ns,omitempty"`
	Queue        int64 `json:"queue_ns,omitempty"`
	Prefill      int64 `json:"prefill_ns,omitempty"`
	Decode       int64 `json:"decode_ns,omitempty"`
	Inference    int64 `json:"inference_ns,omitempty"` // prefill and decode, where they are not told apart
}

// TokenSource says who counted the output tokens, most trusted first.
type TokenSource string

const (
	CountEngine    TokenSource = "engine"    // the engine in this process
	CountUsage     TokenSource = "usage"     // the server's usage object
	CountDetails   TokenSource = "details"   // TGI's details
	CountTokenIDs  TokenSource = "token_ids" // ids in the stream
	CountEvents    TokenSource = "events"    // TGI token events, one per token
	CountTokenizer TokenSource = "tokenizer" // a local tokenizer: approximate
	CountNone      TokenSource = ""          // nobody; token metrics are not available
)

// Finish says why a generation ended.
type Finish string

const (
	FinishLength Finish = "length" // MaxTokens reached
	FinishStop   Finish = "stop"   // end-of-sequence
	FinishNone   Finish = ""       // not said, or it failed before
)

// NewTrace makes a trace that takes marks for maxTokens tokens and one more
// per possible end event, and an answer of the usual length, without
// allocating again.
func NewTrace(maxTokens int) *Trace {
	return &Trace{
		Marks:    make([]Mark, 0, maxTokens+8),
		Tokens:   make([]int32, 0, maxTokens+8),
		Text:     make([]byte, 0, 32*(maxTokens+8)),
		Warnings: make([]Warning, 0, 8),
	}
}

// Reset empties the trace and keeps its memory.
func (tr *Trace) Reset() {
	*tr = Trace{Marks: tr.Marks[:0], Tokens: tr.Tokens[:0], Text: tr.Text[:0], PromptIDs: tr.PromptIDs[:0], Warnings: tr.Warnings[:0]}
}

// Mark notes that n tokens in all had arrived by t. It never allocates: a mark
// that does not fit is counted in MarksLost.
func (tr *Trace) Mark(t int64, n int) {
	if len(tr.Marks) == cap(tr.Marks) {
		tr.MarksLost++
		return
	}
	tr.Marks = append(tr.Marks, Mark{T: t, N: int32(n)})
}

// Warn notes a warning once.
func (tr *Trace) Warn(w Warning) {
	for _, have := range tr.Warnings {
		if have == w {
			return
		}
	}
	tr.Warnings = append(tr.Warnings, w)
}

// FirstToken returns when the first token arrived, 0 if none did.
func (tr *Trace) FirstToken() int64 {
	if len(tr.Marks) == 0 {
		return 0
	}
	return tr.Marks[0].T
}

// LastToken returns when the last token arrived, 0 if none did.
func (tr *Trace) LastToken() int64 {
	if len(tr.Marks) == 0 {
		return 0
	}
	return tr.Marks[len(tr.Marks)-1].T
}
