package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/verify"
)

// The short form of verify, before anything is measured.
const (
	vetPrompts   = 4
	vetMaxTokens = 8
)

// vetting asks every backend a few prompts when it is first ready, before its
// warm-up, and sets it against the reference.
type vetting struct {
	asker asker
	close func() error
	how   map[string]questions    // by model
	sides map[served]*verify.Side // of those that were asked
}

// newVetting readies the check, if there is something to check.
func (x *execution) newVetting() error {
	x.vetting = &vetting{close: func() error { return nil }, how: map[string]questions{}, sides: map[served]*verify.Side{}}
	if x.plan.NoVerify || len(x.plan.Backends) < 2 {
		return nil
	}
	k, closeLog, err := newAsker(filepath.Join(x.w.LogDir(), "verify.log"))
	if err != nil {
		return err
	}
	k.env = x.env
	x.vetting.asker, x.vetting.close = k, closeLog
	for _, key := range x.plan.Models {
		if len(x.unvetted(key)) > 0 {
			q := questions{List: x.questions(key, vetPrompts), MaxTokens: vetMaxTokens, Timeout: x.plan.RequestTimeout}
			for _, c := range x.cells {
				if c.Model == key { // the context was made for no more
					q.MaxTokens = min(q.MaxTokens, c.Sampling.MaxTokens)
				}
			}
			x.vetting.how[key] = q
		}
	}
	return nil
}

// unvetted are the backends that nothing is known of yet, the reference left
// out.
func (x *execution) unvetted(model string) []string {
	return slices.DeleteFunc(referenceFirst(x.plan.Backends)[1:], func(name string) bool {
		return slices.ContainsFunc(x.manifest.SameModel, func(m results.SameModel) bool {
			return m.Model == model && m.Backend == name && m.Verdict != string(verify.Failed)
		})
	})
}

// vetModel asks the backends before the first cell of a model. Where only one
// server may run at a time, that is the reference if it is no server: the others
// are asked as each is started for its first cell, and so is a server for whose
// cells there is no time as far as can be foreseen. What does not become ready is
// left to its cells to tell.
func (x *execution) vetModel(model string) error {
	q, wanted := x.vetting.how[model]
	if !wanted {
		return nil
	}
	list := append(referenceFirst(x.plan.Backends)[:1], x.unvetted(model)...)
	for _, name := range list {
		b, err := x.known.find(name)
		if err != nil {
			return err
		}
		w := served{name, model}
		if x.vetting.sides[w] != nil || x.seats.alone && b.server != nil || len(q.List) == 0 {
			continue
		}
		if x.startsServer(name) && !x.share.foresees(w) {
			continue
		}
		x.show.phase("making " + name + " ready")
		ctx, cancel := x.stop.either()
		from := time.Now()
		seat, started, err := x.seats.first(ctx, b, model)
		cancel()
		if x.stop.stopped() {
			return nil
		}
		if err != nil {
			continue
		}
		if started {
			x.costs.noteStart(w, time.Since(from))
			x.share.isUp(w)
		}
		if err := x.vet(b, seat, model); err != nil {
			return err
		}
	}
	return nil
}

// vet asks a backend that is ready, if it was not asked yet. An error means that
// results cannot be kept.
func (x *execution) vet(b backend, seat *keptSeat, model string) error {
	v := x.vetting
	q, wanted := v.how[model]
	if !wanted || len(q.List) == 0 || v.sides[served{b.name, model}] != nil {
		return nil
	}
	x.show.phase("checking that " + b.name + " runs the same model")
	ctx, cancel := x.stop.either()
	defer cancel()
	ctx, cancelLimit := context.WithTimeout(ctx, x.plan.CellTimeout)
	defer cancelLimit()
	a, err := v.asker.ask(ctx, b, seat.seat, q)
	if x.stop.stopped() {
		return nil
	}
	if a.Side.Backend = b.name; err != nil {
		a.Side.Failed = oneLine(err)
	}
	v.sides[served{b.name, model}] = &a.Side
	return x.vetted(model)
}

// vetted keeps and prints the verdicts that can be given now and are new.
func (x *execution) vetted(model string) error {
	list := referenceFirst(x.plan.Backends)
	ref := x.vetting.sides[served{list[0], model}]
	if ref == nil {
		return nil
	}
	piece, closeVocab := x.pieces(model)
	defer closeVocab()
	changed := false
	for _, name := range list[1:] {
		other := x.vetting.sides[served{name, model}]
		if other == nil {
			continue
		}
		r := verify.Pair(*ref, *other, x.vetting.how[model].List, piece)
		entry := results.SameModel{
			Model: model, Reference: r.Reference, Backend: r.Backend, OK: r.Verdict.OK(),
			Verdict: string(r.Verdict), Cause: string(r.Cause), Why: r.Why,
			Prompts: r.Prompts, PromptsBy: string(r.PromptsBy), PromptsEqual: r.PromptsEqual,
			AnswersBy: string(r.AnswersBy), AnswersEqual: r.AnswersEqual, Tokens: r.Tokens,
		}
		at := slices.IndexFunc(x.manifest.SameModel, func(m results.SameModel) bool { return m.Model == model && m.Backend == name })
		switch {
		case at < 0:
			x.manifest.SameModel = append(x.manifest.SameModel, entry)
		case x.manifest.SameModel[at] == entry:
			continue
		default:
			x.manifest.SameModel[at] = entry
		}
		changed = true
		for _, line := range sameModelLines(entry, x.manifest) {
			x.show.note(line)
		}
	}
	if !changed {
		return nil
	}
	return x.w.SetManifest(x.manifest)
}

// sameModelLines are for the header: one quiet line, or a warning that nobody
// can miss. of is the manifest.
func sameModelLines(m results.SameModel, of *results.Manifest) []string {
	if m.OK {
		line := fmt.Sprintf("  %-9s %s = %s (%s): %s, %d prompts, %d of %d greedy answers equal", "verified", m.Backend, m.Reference, m.Model, m.Verdict, m.Prompts, m.AnswersEqual, m.Prompts)
		if m.Why != "" {
			line += "; " + m.Why
		}
		return []string{line}
	}
	bar := strings.Repeat("!", 72)
	what := fmt.Sprintf("WARNING: %s does NOT run the same model as %s (%s)", m.Backend, m.Reference, m.Model)
	if m.Verdict == string(verify.Failed) {
		what = fmt.Sprintf("WARNING: whether %s runs the same model as %s (%s) could not be verified", m.Backend, m.Reference, m.Model)
	}
	return []string{bar, what, "  " + m.Why, fmt.Sprintf("  more: nativebench verify --model %s --backends %s,%s%s", m.Model, m.Reference, m.Backend, weightsOf(m.Model, of)), bar}
}

// weightsOf are the flags that name a run's weights; none where it has none here.
func weightsOf(key string, of *results.Manifest) (flags string) {
	for _, m := range of.Models {
		if m.Key == key {
			flags = " --gguf " + m.Path
			if m.HFPath != "" {
				flags += " --hf-dir " + m.HFPath
			}
		}
	}
	return flags
}

// notOneModel are the warnings of a run once more, for its end.
func notOneModel(m *results.Manifest) (lines []string) {
	for _, same := range m.SameModel {
		if !same.OK {
			lines = append(lines, sameModelLines(same, m)...)
		}
	}
	return lines
}
