package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/stats"
)

// ruling is what the runs say of a claim.
type ruling string

const (
	borneOut    ruling = "borne out"
	notBorneOut ruling = "not borne out"
	notMeasured ruling = "not measured"
)

// claim is something that is held of a stack, and what the runs say of it.
type claim struct {
	about, text string
	verdict     ruling
	why         string   // of the verdict, one clause
	numbers     []string // that bear on it
}

// Thresholds of the claims that are about size, not about who is first.
const (
	batchingGain = 1.5  // output tok/s at the most at once over one at a time: there is batching
	serialGain   = 1.25 // up to this there is none
	joinShare    = 0.5  // first token over total latency: requests join a running batch
	steadyStep   = 1.25 // time per token behind the longest prompt over the shortest: it scales well
)

// betweenGains is why a gain rules nothing.
var betweenGains = fmt.Sprintf("the gain lies between %.2f and %.1f, which is neither", serialGain, batchingGain)

// claims are those of the experiment about the three frameworks, in our words.
func (d *document) claims(of Whole) []claim {
	return []claim{
		d.serial("answers one request at a time: several at once bring no more tokens a second (no batching of its own)", of),
		d.streams("transformers-serve", "has no server that streams: one has to be written around it", of),
		d.slower("transformers", "is limited in speed", of),
		unmeasurable("transformers", "is easy to set up", "ease is no number; what can be told is how long its server took to be ready", d.readiness("transformers", "transformers-serve")),
		d.streamsYes("tgi", "serves over HTTP and streams by SSE", of),
		d.batches("tgi", "batches requests dynamically", of, false),
		unmeasurable("tgi", "is harder to set up (Docker)", "effort is no number; what can be told is how long its server took to be ready", d.readiness("tgi")),
		d.pages("vllm", "wastes little memory on its KV cache (PagedAttention)", of),
		d.batches("vllm", "batches token by token: a request joins those that run, and does not wait for their end", of, true),
		d.best("vllm", "streams fast", []string{"tpot", "itl"}, of),
		d.best("vllm", "has low latency", []string{"ttft", "e2e"}, of),
		d.scales("vllm", "scales well with the context", of),
		unmeasurable("vllm", "needs configuration", "effort is no number; what it was started with stands in the manifests", d.readiness("vllm")),
	}
}

func unmeasurable(about, text, why string, numbers []string) claim {
	return claim{about: about, text: text, verdict: notMeasured, why: why, numbers: numbers}
}

// absent is why nothing is known of a backend.
func (d *document) absent(backend string, of Whole) string {
	for _, v := range d.runs { // first: it may be left out of another run, or of a part of one
		if slices.Contains(v.backends, backend) {
			return "no load of " + backend + " has what it takes"
		}
	}
	for _, o := range of.Omitted {
		if o.What == backend || strings.HasSuffix(o.What, " on "+backend) {
			return backend + " was not run: " + o.Why
		}
	}
	return backend + " was not run: it was not among the backends"
}

// curve is one backend under a task and mode, by requests at once, few first.
type curve struct {
	name  string // "gpt2 chat stream"
	seats []*seat
}

// curves are those of a backend with a metric known at two loads at least.
func (d *document) curves(backend, key, mode string) (all []curve) {
	for _, v := range d.runs {
		at := map[string]int{}
		for _, l := range v.loads {
			s := l.of(backend)
			if l.sweep() || s == nil || mode != "" && l.Mode != mode || !s.summary.Get(key).Known() {
				continue
			}
			name := fmt.Sprintf("%s %s %s", l.Model, l.Task, l.Mode)
			if _, known := at[name]; !known {
				at[name] = len(all)
				all = append(all, curve{name: name})
			}
			c := &all[at[name]]
			c.seats = append(c.seats, s)
		}
	}
	for i := range all {
		slices.SortStableFunc(all[i].seats, func(a, b *seat) int { return a.load.Concurrency - b.load.Concurrency })
	}
	return slices.DeleteFunc(all, func(c curve) bool {
		return c.seats[0].load.Concurrency != 1 || c.seats[len(c.seats)-1].load.Concurrency < 4
	})
}

func (c curve) ends() (first, last *seat) { return c.seats[0], c.seats[len(c.seats)-1] }

// gain says how a rate grows over a curve.
func (c curve) gain(key string) (ratio float64, text string) {
	first, last := c.ends()
	x, y := first.summary.Get(key).Median, last.summary.Get(key).Median
	return y / x, fmt.Sprintf("%s: %s tok/s one at a time, %s at ×%d: %s", c.name, fixed(x, 1), fixed(y, 1), last.load.Concurrency, times(y/x))
}

const needsParallel = "it takes a load of one request at a time and one of 4 or more"

// decide rules by how often a claim held.
func (c *claim) decide(holds, fails int, open string) {
	switch {
	case holds+fails == 0:
		c.verdict, c.why = notMeasured, open
	case fails == 0:
		c.verdict, c.why = borneOut, fmt.Sprintf("in all of %d", holds)
	case holds == 0:
		c.verdict, c.why = notBorneOut, fmt.Sprintf("in none of %d", fails)
	default:
		c.verdict, c.why = notBorneOut, fmt.Sprintf("it holds in %d of %d", holds, holds+fails)
	}
	if open != "" && holds+fails > 0 {
		c.why += "; " + open
	}
}

// shaky says why a number of a seat must not be set against that of another load:
// the reasons for which Compare withholds a verdict within one. "" if it may be.
func (s *seat) shaky(key string) string {
	e := s.summary.Get(key)
	if why := s.unranked(); why != "" {
		return why
	}
	if len(e.Repeats) < 2 {
		return "one repeat: what differs from process to process cannot be seen"
	}
	if why := e.Doubts(); len(why) > 0 {
		return why[0]
	}
	return ""
}

// shakyPair is shaky of either.
func shakyPair(a, b *seat, key string) string {
	if why := a.shaky(key); why != "" {
		return why
	}
	return b.shaky(key)
}

// openCount counts what cannot be ruled, by reason.
type openCount struct {
	n       int
	reasons []string
}

func (o *openCount) add(why string) {
	if o.n++; !slices.Contains(o.reasons, why) {
		o.reasons = append(o.reasons, why)
	}
}

func (o *openCount) text() string { return undecided(o.n, o.reasons) }

// failures is a clause about requests that failed at a seat; "" if none did.
func failures(s *seat) string {
	if f := s.summary.Get("failed"); f.Count > 0 {
		return fmt.Sprintf(" (%d of %d requests failed)", f.Count, f.N)
	}
	return ""
}

// serial is ruled by the server that comes with Transformers, where that was
// measured: ours takes requests one by one on purpose.
func (d *document) serial(text string, of Whole) claim {
	c := claim{about: "transformers", text: text}
	own, ours := d.curves("transformers-serve", "tok_per_s", ""), d.curves("transformers", "tok_per_s", "")
	if len(own)+len(ours) == 0 {
		c.decide(0, 0, d.absent("transformers-serve", of)+"; "+d.absent("transformers", of)+"; "+needsParallel)
		return c
	}
	holds, fails := 0, 0
	var open openCount
	for i, k := range slices.Concat(own, ours) {
		gain, line := k.gain("tok_per_s")
		first, last := k.ends()
		c.numbers = append(c.numbers, first.backend+", "+line+failures(last))
		why := shakyPair(first, last, "tok_per_s")
		switch {
		case len(own) > 0 && i >= len(own): // only told
		case why != "":
			open.add(why)
		case gain <= serialGain:
			holds++
		case gain >= batchingGain:
			fails++
		default:
			open.add(betweenGains)
		}
	}
	c.decide(holds, fails, open.text())
	if len(own) == 0 && c.verdict != notMeasured {
		c.why += "; of our own server around generate, which takes them one by one on purpose: transformers-serve was not measured"
	}
	return c
}

func (d *document) batches(backend, text string, of Whole, join bool) claim {
	c := claim{about: backend, text: text}
	curves := d.curves(backend, "tok_per_s", measure.Stream)
	if len(curves) == 0 {
		c.decide(0, 0, d.absent(backend, of)+"; "+needsParallel+", streaming")
		return c
	}
	holds, fails := 0, 0
	var open openCount
	for _, k := range curves {
		gain, line := k.gain("tok_per_s")
		first, last := k.ends()
		ttft, e2e := last.summary.Get("ttft"), last.summary.Get("e2e")
		share := math.NaN()
		if join && ttft.Known() && e2e.Known() {
			share = ttft.Median / e2e.Median
			line += fmt.Sprintf("; there the first token comes after %s of the total latency", percent(share))
		}
		c.numbers = append(c.numbers, line+failures(last))
		why := shakyPair(first, last, "tok_per_s")
		switch {
		case why != "":
			open.add(why)
		case gain >= batchingGain && (!join || share < joinShare):
			holds++
		case gain <= serialGain || join && share >= joinShare:
			fails++
		default:
			open.add(betweenGains)
		}
	}
	c.decide(holds, fails, open.text())
	return c
}

// streaming counts the requests of a backend that streamed: answers that came in
// more than one event.
func (d *document) streaming(backend string) (streamed, answered int) {
	for _, v := range d.runs {
		for _, l := range v.loads {
			s := l.of(backend)
			if s == nil || l.Mode != measure.Stream {
				continue
			}
			for _, cell := range s.group.Cells {
				for _, r := range cell.Requests {
					if r.Class == bench.OK && r.OutputTokens > 1 {
						answered++
						if r.Events > 1 {
							streamed++
						}
					}
				}
			}
		}
	}
	return streamed, answered
}

func (d *document) streams(backend, text string, of Whole) claim {
	c := claim{about: "transformers", text: text}
	streamed, answered := d.streaming(backend)
	if answered == 0 {
		c.decide(0, 0, d.absent(backend, of)+", and it is the server that comes with Transformers")
		return c
	}
	c.numbers = []string{fmt.Sprintf("%s: %d of %d answers came in several events", backend, streamed, answered)}
	if streamed > 0 {
		c.verdict, c.why = notBorneOut, "the server that comes with Transformers streams"
	} else {
		c.verdict, c.why = borneOut, "the server that comes with Transformers sent every answer whole"
	}
	return c
}

func (d *document) streamsYes(backend, text string, of Whole) claim {
	c := claim{about: backend, text: text}
	streamed, answered := d.streaming(backend)
	if answered == 0 {
		c.decide(0, 0, d.absent(backend, of))
		return c
	}
	c.numbers = []string{fmt.Sprintf("%d of %d answers came in several events", streamed, answered)}
	if streamed > 0 {
		c.verdict, c.why = borneOut, "its answers came in several events"
	} else {
		c.verdict, c.why = notBorneOut, "every answer came whole"
	}
	return c
}

// contest counts how often a backend is first among rivals, or behind, where a
// test says so.
type contest struct {
	ahead, behind, open int
	reasons             []string
	low, high           float64 // ratio to the best rival
	lowAt, highAt       string
}

func (d *document) contest(backend, key string, rivals func(*seat) bool) (k contest) {
	k.low, k.high = math.Inf(1), math.Inf(-1)
	for _, v := range d.runs {
		for _, l := range v.loads {
			s := l.of(backend)
			if s == nil || !s.summary.Get(key).Known() || s.unranked() != "" {
				continue
			}
			r, ok := l.rank(key, func(o *seat) bool { return o != s && rivals(o) })
			if !ok {
				continue
			}
			c, ok := s.compared(r.seats[0], key)
			if !ok || math.IsNaN(c.Ratio) {
				continue
			}
			if c.Ratio < k.low {
				k.low, k.lowAt = c.Ratio, l.Load+" against "+r.seats[0].backend
			}
			if c.Ratio > k.high {
				k.high, k.highAt = c.Ratio, l.Load+" against "+r.seats[0].backend
			}
			better := c.Ratio < 1
			if r.column.Better == measure.Higher {
				better = c.Ratio > 1
			}
			switch {
			case c.Verdict == stats.NoneFound:
				k.open++
				if !slices.Contains(k.reasons, "no difference was found") {
					k.reasons = append(k.reasons, "no difference was found")
				}
			case c.Verdict != stats.Differs:
				k.open++
				if !slices.Contains(k.reasons, c.Why) {
					k.reasons = append(k.reasons, c.Why)
				}
			case better:
				k.ahead++
			default:
				k.behind++
			}
		}
	}
	return k
}

func (k contest) loads() int { return k.ahead + k.behind + k.open }

func (k contest) text(key, what string) string {
	text := fmt.Sprintf("%s, %s: %s (%s)", columnName(key), what, times(k.low), k.lowAt)
	if k.highAt != k.lowAt {
		text += fmt.Sprintf(" to %s (%s)", times(k.high), k.highAt)
	}
	return fmt.Sprintf("%s; ahead in %d, behind in %d, undecided in %d of %d loads", text, k.ahead, k.behind, k.open, k.loads())
}

// best holds where the backend beats the best of the other servers.
func (d *document) best(backend, text string, keys []string, of Whole) claim {
	c := claim{about: backend, text: text + ": it beats the best of the other servers"}
	holds, fails, open := 0, 0, 0
	var reasons []string
	for _, key := range keys {
		k := d.contest(backend, key, isServer)
		if k.loads() == 0 {
			continue
		}
		c.numbers = append(c.numbers, k.text(key, "over the best of the other servers"))
		holds, fails, open = holds+k.ahead, fails+k.behind, open+k.open
		for _, why := range k.reasons {
			if !slices.Contains(reasons, why) {
				reasons = append(reasons, why)
			}
		}
	}
	if len(c.numbers) == 0 {
		c.decide(0, 0, d.absent(backend, of)+"; it takes another server under the same loads, streaming")
		return c
	}
	c.decide(holds, fails, undecided(open, reasons))
	return c
}

// slower holds where the backend is behind the best of all others.
func (d *document) slower(backend, text string, of Whole) claim {
	c := claim{about: backend, text: text + ": the best of the others makes tokens faster"}
	k := d.contest(backend, "tpot", anyBackend)
	if k.loads() == 0 {
		c.decide(0, 0, d.absent(backend, of)+"; it takes another backend under the same loads, streaming")
		return c
	}
	c.numbers = []string{k.text("tpot", "over the best of the others")}
	c.decide(k.behind, k.ahead, undecided(k.open, k.reasons))
	return c
}

func undecided(open int, reasons []string) string {
	if open == 0 {
		return ""
	}
	return fmt.Sprintf("%d without a verdict: %s", open, strings.Join(reasons, "; "))
}

// Tokens in a block of vLLM's KV cache by default, on GPUs and on CPUs.
const gpuBlock, cpuBlock = 16, 128

// pages sets the KV cache that was in use against what the requests at once
// could need at most, in whole blocks; one more is the allocator's own.
func (d *document) pages(backend, text string, of Whole) claim {
	c := claim{about: backend, text: text + ": no more of it is in use than the requests at once can need, in whole blocks"}
	holds, fails := 0, 0
	for _, v := range d.runs {
		block := cpuBlock
		if len(v.Manifest.Environment.GPUs) > 0 {
			block = gpuBlock
		}
		for _, l := range v.loads {
			s := l.of(backend)
			if s == nil || l.Concurrency < 4 && !l.sweep() {
				continue
			}
			for _, cell := range s.cells {
				if cell.Event == nil || cell.Event.Server == nil || !cell.Done() {
					continue
				}
				u := cell.Event.Server
				longest := 0
				for _, r := range cell.Measured() {
					longest = max(longest, r.PromptTokens+r.OutputTokens)
				}
				if u.KVPoolTokens <= 0 || u.KVCacheUsedMax <= 0 || longest == 0 {
					continue
				}
				blocks := (longest + block - 1) / block * l.Concurrency
				used, need := u.KVCacheUsedMax*u.KVPoolTokens, float64(blocks*block)
				if used <= need+float64(block) {
					holds++
				} else {
					fails++
				}
				if cell.Repeat == 0 {
					line := fmt.Sprintf("%s: %.0f tokens in use at most of %.0f; %s of up to %d tokens can need %.0f, in blocks of %d", l.Load, used, u.KVPoolTokens, count(l.Concurrency, "request"), longest, need, block)
					if u.Preemptions > 0 {
						line += fmt.Sprintf("; %d preemptions", u.Preemptions)
					}
					c.numbers = append(c.numbers, line)
				}
			}
		}
	}
	open := ""
	if holds+fails == 0 {
		open = d.absent(backend, of) + "; it takes 4 requests at once and the server's own account of its cache"
	}
	c.decide(holds, fails, open)
	return c
}

// scales sets the time per token behind the longest prompt against that behind
// the shortest, and the slope of the first token against other servers.
func (d *document) scales(backend, text string, of Whole) claim {
	c := claim{about: backend, text: text + fmt.Sprintf(": behind its longest prompt a token takes at most %.2f of the time behind the shortest", steadyStep)}
	holds, fails := 0, 0
	var open openCount
	for _, v := range d.runs {
		for _, loads := range v.sweepLoads() {
			if loads[0].Mode != measure.Stream {
				continue
			}
			first, last := loads[0], loads[len(loads)-1]
			if first == last {
				continue
			}
			for _, b := range v.backends {
				x, y := first.of(b), last.of(b)
				if x == nil || y == nil {
					continue
				}
				short, long := x.summary.Get("tpot"), y.summary.Get("tpot")
				if !short.Known() || !long.Known() {
					continue
				}
				ratio := long.Median / short.Median
				line := fmt.Sprintf("%s, %s: %s ms a token behind %d tokens, %s behind %d: %s", b, first.Model, fixed(1e3*short.Median, 2), first.Prompt, fixed(1e3*long.Median, 2), last.Prompt, times(ratio))
				if f, ok := fit(loads, b, "ttft"); ok {
					line += fmt.Sprintf("; first token %+.1f ms for 1000 tokens of prompt", 1e6*f.Slope)
				}
				c.numbers = append(c.numbers, line)
				if b != backend {
					continue
				}
				why := shakyPair(x, y, "tpot")
				switch {
				case why != "":
					open.add(why)
				case ratio <= steadyStep:
					holds++
				default:
					fails++
				}
			}
		}
	}
	why := open.text()
	if holds+fails+open.n == 0 {
		why = d.absent(backend, of) + "; it takes a context sweep, streaming"
	}
	c.decide(holds, fails, why)
	return c
}

// readiness is how long servers took to be ready.
func (d *document) readiness(backends ...string) (lines []string) {
	for _, v := range d.runs {
		for _, b := range v.Manifest.Backends {
			if line := fmt.Sprintf("%s, %s: ready in %.1f s", b.Backend, b.Model, float64(b.StartNS)/1e9); slices.Contains(backends, b.Backend) && b.StartNS > 0 && !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// claimLines bounds the numbers of a claim in a report for people; JSON has all.
const claimLines = 12

// claimSection prints the claims.
func (d *document) claimSection(of Whole) section {
	s := section{
		title: "What is held of the frameworks, and what these runs say", rank: 1,
		lead: []string{
			"Borne out: it held in every load that could tell. Not borne out: it did not in some or all. Not measured: nothing here can tell, and why. " +
				"Where one backend is set against another, only differences that pass a test count.",
		},
	}
	for _, c := range d.claims(of) {
		s.facts = append(s.facts, fact{name: string(c.verdict), text: c.about + " " + c.text, tone: strong}, fact{text: c.why})
		shown := c.numbers[:min(len(c.numbers), claimLines)]
		for _, line := range shown {
			s.facts = append(s.facts, fact{text: line})
		}
		if more := len(c.numbers) - len(shown); more > 0 {
			s.facts = append(s.facts, fact{text: fmt.Sprintf("and %d more in answers.json", more)})
		}
	}
	return s
}
