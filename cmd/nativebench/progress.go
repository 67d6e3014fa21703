package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
)

// liveLine is a line at the bottom of a terminal that is rewritten in place.
// Where there is no terminal it draws nothing.
type liveLine struct {
	out     io.Writer
	live    bool // out is a terminal
	width   int
	drawn   bool // the line is on the screen
	drawnAt time.Time
}

// redraw is how often the line may change: reading is not faster, and drawing
// takes time from what is measured.
const redraw = 250 * time.Millisecond

func newLiveLine(out io.Writer) *liveLine {
	l := &liveLine{out: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		l.live = true
		l.width, _, _ = term.GetSize(int(f.Fd()))
	}
	if l.width < 20 {
		l.width = 80
	}
	return l
}

// line prints a line that stays.
func (l *liveLine) line(text string) {
	l.erase()
	fmt.Fprintln(l.out, text)
}

// due tells whether draw would draw now.
func (l *liveLine) due() bool { return l.live && (!l.drawn || time.Since(l.drawnAt) >= redraw) }

// draw rewrites the line, if it is due.
func (l *liveLine) draw(text string) {
	if !l.due() {
		return
	}
	l.drawnAt = time.Now()
	if r := []rune(text); len(r) >= l.width {
		text = string(r[:l.width-2]) + "…"
	}
	fmt.Fprint(l.out, "\r\x1b[K"+text)
	l.drawn = true
}

// erase takes the line off the screen.
func (l *liveLine) erase() {
	if l.drawn {
		fmt.Fprint(l.out, "\r\x1b[K")
		l.drawn = false
	}
}

// progress tells people how far a run is: one line per finished cell, and
// beneath them, on a terminal, a live line with the time left.
type progress struct {
	mu   sync.Mutex
	show *liveLine

	cells    []plan.Cell // that are to run
	at       int         // cell that runs, index in cells
	answered int         // measured requests of it
	what     string

	began time.Time // of the cell
	left  estimate
}

func newProgress(out io.Writer, cells []plan.Cell) *progress {
	return &progress{
		show: newLiveLine(out), cells: cells,
		left: estimate{cost: map[string]time.Duration{}, work: map[string]float64{}},
	}
}

// start says that a cell of those that are to run begins.
func (p *progress) start(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.cells, func(c plan.Cell) bool { return c.ID() == id })
	p.at, p.answered, p.what, p.began = i, 0, "starting", time.Now()
	p.draw()
}

// phase says what the cell that runs is doing.
func (p *progress) phase(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
	p.draw()
}

// request says that a request was answered or failed.
func (p *progress) request(warmup bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if warmup {
		p.what = "warming up"
	} else {
		p.answered++
		p.what = fmt.Sprintf("%d of %d requests", p.answered, p.cells[p.at].Requests)
	}
	p.draw()
}

// planned is how many measured requests the cell that runs is to send.
func (p *progress) planned() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cells[p.at].Requests
}

// requests is how many measured requests of the cell have ended.
func (p *progress) requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answered
}

// uncounted are the requests of a cell that are in no number.
type uncounted struct {
	failed, leftOut int    // leftOut: answered, with a warning that keeps them out
	failure         string // error of the first that failed
	warning         bench.Warning
}

// note adds a measured request, if it is one.
func (u *uncounted) note(r *results.Record) {
	if r.Class != bench.OK {
		if u.failed++; u.failed == 1 {
			u.failure = oneLine(errors.New(r.Error))
		}
	} else if w := measure.Spoilt(&r.Trace); w != "" {
		if u.leftOut++; u.leftOut == 1 {
			u.warning = w
		}
	}
}

// String is what the cell's line says of them, each with the first reason.
func (u *uncounted) String() (text string) {
	if u.failed > 0 {
		text = fmt.Sprintf(", %d FAILED (first: %s)", u.failed, u.failure)
	}
	if u.leftOut > 0 {
		text += fmt.Sprintf(", %d LEFT OUT for warnings (first: %s)", u.leftOut, u.warning)
	}
	return text
}

// end says how the cell that runs ended, and why some of its requests are in no
// number.
func (p *progress) end(ev results.CellEvent, not uncounted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.cells[p.at]
	took := time.Since(p.began)
	var how string
	switch ev.State {
	case results.CellDone:
		p.left.add(c, took)
		how = fmt.Sprintf("%d requests", p.answered) + not.String()
	default:
		how = strings.ToUpper(string(ev.State)) + " " + ev.Reason
	}
	digits := len(fmt.Sprint(len(p.cells)))
	p.show.line(fmt.Sprintf("[%*d/%d] %-*s  %7s  %s", digits, p.at+1, len(p.cells), p.idWidth(), c.ID(), short(took), how))
}

func (p *progress) idWidth() (w int) {
	for _, c := range p.cells {
		w = max(w, len(c.ID()))
	}
	return w
}

// note prints a line above the live one.
func (p *progress) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show.line(text)
}

// clear takes the live line off the screen.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show.erase()
}

func (p *progress) draw() {
	if !p.show.due() {
		return
	}
	text := fmt.Sprintf("[%d/%d] %s · %s", p.at+1, len(p.cells), p.cells[p.at].ID(), p.what)
	if left, ok := p.left.of(p.cells[p.at:]); ok {
		text += fmt.Sprintf(" · about %s left", short(max(left-time.Since(p.began), time.Second)))
	}
	p.show.draw(text)
}

// estimate learns from the cells that are done how long the others will take:
// per backend, time per unit of work.
type estimate struct {
	cost map[string]time.Duration
	work map[string]float64
}

// workOf is a cell's work in requests of one output token: an answer costs its
// tokens, and a fixed part beside them.
func workOf(c plan.Cell) float64 {
	return float64(c.Requests+c.Warmup*c.Concurrency) * float64(c.Sampling.MaxTokens+8)
}

func (e estimate) add(c plan.Cell, took time.Duration) {
	e.cost[c.Backend] += took
	e.work[c.Backend] += workOf(c)
}

// of returns the time for the cells; not ok while nothing has been done yet. A
// backend without a finished cell is taken to be as fast as the others.
func (e estimate) of(cells []plan.Cell) (time.Duration, bool) {
	var cost time.Duration
	var work float64
	for name := range e.cost {
		cost += e.cost[name]
		work += e.work[name]
	}
	if work == 0 {
		return 0, false
	}
	var sum float64
	for _, c := range cells {
		rate := float64(cost) / work
		if w := e.work[c.Backend]; w > 0 {
			rate = float64(e.cost[c.Backend]) / w
		}
		sum += rate*workOf(c) + float64(c.Cooldown)
	}
	return time.Duration(sum), true
}

// short prints a time for people: 0.4s, 12s, 3m05s, 2h10m.
func short(d time.Duration) string {
	if d < 9950*time.Millisecond {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	switch d = d.Round(time.Second); {
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	d = d.Round(time.Minute)
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}
