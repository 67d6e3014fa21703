package main

import (
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
)

// resumeSetup makes the setup of a run that is there already: its plan, its
// weights. Flags that would change what it measures are refused, since half a
// run of one thing and half of another is no run.
func resumeSetup(c *cli.Context, known registry) (*setup, error) {
	dir := c.String("resume")
	if c.IsSet("out") {
		return nil, refuse("--resume %s and --out %s: a run is completed where it is; leave --out away", dir, c.String("out"))
	}
	run, err := results.Read(dir)
	if err != nil {
		return nil, refuse("--resume: %w", err)
	}
	var p plan.Plan
	if err := run.Manifest.DecodePlan(&p); err != nil {
		return nil, refuse("--resume %s: %w", dir, err)
	}
	s := newSetup(c, known, p)
	s.out, s.resumed = dir, run
	var changed []string
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		if !c.IsSet(name) {
			continue
		}
		one := p
		applyOneFlag(c, name, &one)
		if !reflect.DeepEqual(one, p) {
			changed = append(changed, "--"+name)
		}
	}
	for _, name := range []string{"weights", "gguf", "dtype", "layers", "width", "hf-dir", "revision"} {
		if c.IsSet(name) {
			changed = append(changed, "--"+name)
		}
	}
	if len(changed) > 0 {
		return nil, refuse("--resume %s: %s would change what that run measures; leave that away, or start a new run", dir, strings.Join(changed, ", "))
	}
	s.plan = p
	s.resumedPaths, s.resumedDirs = map[string]string{}, map[string]string{}
	for _, m := range run.Manifest.Models {
		_, err := os.Stat(m.Path)
		switch {
		case err == nil:
		case m.Source != nil:
			return nil, refuse("--resume %s: %w: make it again (nativebench models convert --type %s %s), or start a new run", dir, err, strings.ToLower(m.DType), m.Source.Path)
		case m.Synthetic:
			s.weights, s.dtype = synthetic, strings.ToLower(m.DType) // they can be written again
			s.relativeOf(m)
			continue
		default:
			return nil, refuse("--resume %s: the weights that it began with are not there: %w: restore that file, or start a new run", dir, err)
		}
		s.resumedPaths[m.Key], s.resumedDirs[m.Key] = m.Path, m.HFPath
	}
	return s, nil
}

// relativeOf asks for synthetic weights of the size that a run began with.
func (s *setup) relativeOf(m results.Model) {
	known, err := plan.ModelByKey(m.Key)
	if err != nil || m.Relative == "" {
		return
	}
	if m.Layers != known.Shape.Layers {
		s.layers = m.Layers
	}
	if m.Width != known.Shape.Width {
		s.width = m.Width
	}
}

// todo are the indices of the cells that are not done.
func (s *setup) todo() (list []int) {
	done := map[string]bool{}
	if s.resumed != nil {
		for _, c := range s.resumed.Cells() {
			done[c.ID] = c.Done()
		}
	}
	for i, c := range s.cells {
		if !done[c.ID()] {
			list = append(list, i)
		}
	}
	return list
}

// at are the cells at those indices.
func (s *setup) at(indices []int) []plan.Cell {
	cells := make([]plan.Cell, len(indices))
	for i, at := range indices {
		cells[i] = s.cells[at]
	}
	return cells
}

// sameRun refuses to complete a run with other cells, weights or prompts than
// it was begun with, and returns what else is different: that goes into the
// manifest as warnings.
func (s *setup) sameRun(now *results.Manifest) (differences []string, err error) {
	was := &s.resumed.Manifest
	if len(was.Cells) != len(now.Cells) {
		return nil, refuse("--resume %s: it has %d cells, this nativebench would make %d of its plan: complete it with %s", s.out, len(was.Cells), len(now.Cells), toolName(was.Tool))
	}
	for i := range was.Cells {
		if was.Cells[i] != now.Cells[i] {
			return nil, refuse("--resume %s: its cell %s would be another today (%s): complete it with %s", s.out, was.Cells[i].ID, now.Cells[i].ID, toolName(was.Tool))
		}
	}
	for i, m := range was.Models {
		if i < len(now.Models) && now.Models[i].SHA256 != m.SHA256 {
			return nil, refuse("--resume %s: %s is not the file that the run began with (SHA-256 %.12s, was %.12s): restore it, or start a new run", s.out, m.Path, now.Models[i].SHA256, m.SHA256)
		}
	}
	if a, b := was.Environment.Versions[promptsVersion], now.Environment.Versions[promptsVersion]; a != b {
		return nil, refuse("--resume %s: %s is not the file that the run began with: restore it, or start a new run", s.out, s.plan.PromptFile)
	}
	for i, c := range was.PromptCounts {
		if i < len(now.PromptCounts) && now.PromptCounts[i].SHA256 != c.SHA256 {
			return nil, refuse("--resume %s: its prompts were counted with another vocabulary than there is now (%s; now %s): restore it, or start a new run", s.out, countText(c), countText(now.PromptCounts[i]))
		}
	}
	note := func(what, a, b string) {
		if a != b {
			differences = append(differences, fmt.Sprintf("completed with another %s: %s, begun with %s", what, b, a))
		}
	}
	note("nativebench", toolName(was.Tool), toolName(now.Tool))
	note("engine", was.Environment.Versions["engine_build"]+" "+was.Environment.Versions["engine_sources"],
		now.Environment.Versions["engine_build"]+" "+now.Environment.Versions["engine_sources"])
	note("CPU", was.Environment.CPU, now.Environment.CPU)
	note("kernel", was.Environment.Kernel, now.Environment.Kernel)
	note("number of cores", fmt.Sprint(was.Environment.Cores), fmt.Sprint(now.Environment.Cores))
	return differences, nil
}

func toolName(t results.Tool) string {
	text := "nativebench " + t.Version
	if t.Commit != "" {
		text += fmt.Sprintf(" (%.12s)", t.Commit)
	}
	return text
}
