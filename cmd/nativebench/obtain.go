package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/convert"
	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/hub"
	"github.com/nativebench/nativebench/internal/launch"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/scripts"
)

// elsewhere says how a run gets weights that the hub does not give.
func elsewhere(key string) string {
	return fmt.Sprintf("measure random numbers in its shape (--weights synthetic), give the weights (--gguf FILE, --hf-dir DIR), "+
		"or fetch them where there is a network (nativebench models pull %s) and bring that cache here (HF_HOME)", key)
}

// checkHub looks for a model in the hub's cache, and refuses one that is not
// there where nothing may be downloaded, or could not be converted.
func (s *setup) checkHub(key string) error {
	m, err := plan.ModelByKey(key)
	if err != nil {
		return usageError{err}
	}
	have, err := hub.Find(m.HubID, s.revision)
	switch {
	case errors.Is(err, hub.ErrMissing) && s.offline:
		forbids, allow := "--offline", "leave it away"
		if hub.Forbidden() {
			forbids, allow = "HF_HUB_OFFLINE is set", "unset it"
		}
		return refuse("%s: the weights of %s would have to be downloaded (%w): %s, or %s", forbids, key, err, allow, elsewhere(key))
	case err != nil && !errors.Is(err, hub.ErrMissing):
		return refuse("--weights hub: %w", err)
	}
	dir := ""
	if have != nil {
		s.snapshots[key], dir = have, have.Dir
	}
	spec, err := conversion(dir, s.dtype, s.engineDir)
	if err == nil {
		err = s.canConvert(spec)
	}
	switch {
	case errors.Is(err, convert.ErrNoConverter):
		return refuse("--weights hub: %w, or --weights synthetic", err)
	case err != nil:
		return refuse("--weights hub: %w", err)
	}
	return nil
}

// canConvert is an error where a conversion would fail. The Python environment
// for it is made, where it may be.
func (s *setup) canConvert(spec convert.Spec) error {
	err := spec.Check()
	if errors.Is(err, convert.ErrNoPython) && s.mayMakePython() {
		return nil
	}
	return err
}

// mayMakePython tells that the environment may be made: not where it is the
// user's.
func (s *setup) mayMakePython() bool {
	return !s.offline && os.Getenv(pythonVariable(convertEnv)) == ""
}

// obtain has here what weights are made of: from the hub what its cache lacks,
// and the Python environment of the converter. Before that it refuses what would
// not fit into memory or on the disk, as far as that can be foreseen.
func (s *setup) obtain(ctx context.Context, show *liveLine) error {
	for _, key := range s.plan.Models {
		m, err := s.foreseen(key)
		if err != nil {
			return err
		}
		s.models[key] = m
	}
	if err := s.checkMemory(); err != nil {
		return err
	}
	client, pulls, err := s.planPulls(ctx, show)
	if err != nil {
		return err
	}
	needs, err := s.diskNeeds(pulls)
	if err != nil {
		return err
	}
	if err := checkDisk(needs, "choose a smaller model, or set HF_HUB_CACHE (the hub's files) or XDG_CACHE_HOME (all else) to a directory on another disk"); err != nil {
		return err
	}
	if s.dry && len(needs) > 0 {
		return notHereYet(needs)
	}
	if s.makesPython() {
		if err := makePython(ctx, show); err != nil {
			return err
		}
	}
	for _, key := range s.plan.Models {
		todo := pulls[key]
		if todo == nil {
			continue
		}
		for _, line := range pullLines(todo) {
			show.line(line)
		}
		began := time.Now()
		have, err := client.Pull(ctx, todo, pullProgress(show))
		show.erase()
		if err != nil {
			if ctx.Err() != nil {
				show.line("stopped; what has arrived is kept, the same command goes on there")
			}
			return fmt.Errorf("the weights of %s: %w", key, err)
		}
		show.line(fmt.Sprintf("fetched and checked in %s: %s", short(time.Since(began)), have.Dir))
		s.snapshots[key] = have
	}
	return nil
}

// foreseen is a model as far as can be told before its file is made: what
// memory it takes.
func (s *setup) foreseen(key string) (*model, error) {
	if path := s.pathOf(key); path != "" {
		return s.inspect(key, path)
	}
	m, err := plan.ModelByKey(key)
	if err != nil {
		return nil, usageError{err}
	}
	var shape gguf.Summary
	switch dir := s.directoryOf(key); {
	case s.weights == synthetic:
		if shape, err = s.synthSpec(key).Summary(); err != nil {
			return nil, refuse("--weights synthetic: %w", err)
		}
	case dir != "":
		if shape, err = convert.Inspect(dir); err != nil {
			return nil, refuse("the weights of %s: %w", key, err)
		}
		shape.TensorBytes = ofType(shape.TensorBytes, s.dtype)
	default:
		tensors, err := synth.Tensors(key)
		if err != nil {
			return nil, usageError{err}
		}
		shape = tableShape(m, tensors)
		shape.TensorBytes = ofType(shape.TensorBytes, s.dtype)
	}
	return &model{Model: m, shape: shape, context: min(roundUp(s.plan.SlotContext(m), contextStep), m.Context)}, nil
}

// ofType is how large F16 weights are at least when they are converted: Q8_0 has
// 34 bytes for 32 numbers, Q4_K 144 for 256 (some tensors stay wider).
func ofType(f16 int64, dtype string) int64 {
	switch strings.ToLower(dtype) {
	case "q8_0":
		return f16 * 34 / 64
	case "q4_k_m":
		return f16 * 144 / 512
	}
	return f16
}

// planPulls asks the hub what a download of the models takes that its cache
// lacks.
func (s *setup) planPulls(ctx context.Context, show *liveLine) (client *hub.Client, pulls map[string]*hub.Plan, err error) {
	for _, key := range s.plan.Models {
		if s.weights != fromHub || s.pathOf(key) != "" || s.directoryOf(key) != "" {
			continue
		}
		m := s.models[key].Model
		if client == nil {
			if client, err = hub.NewClient(); err != nil {
				return nil, nil, refuse("--weights hub: %w", err)
			}
			pulls = map[string]*hub.Plan{}
		}
		show.draw("asking the hub for " + m.HubID)
		todo, err := client.Plan(ctx, m.HubID, s.revision)
		show.erase()
		if err != nil {
			return nil, nil, refuse("the weights of %s are not here, and the hub does not give them: %w; or %s", key, err, elsewhere(key))
		}
		pulls[key] = todo
	}
	return client, pulls, nil
}

// makesPython tells that the environment of the converter is wanted and not there.
func (s *setup) makesPython() bool {
	if s.weights != fromHub || !slices.ContainsFunc(s.plan.Models, func(key string) bool { return s.pathOf(key) == "" }) {
		return false
	}
	return errors.Is(convert.Available(s.engineDir, pythonDir(convertEnv)), convert.ErrNoPython)
}

// diskNeed is what will be written where.
type diskNeed struct {
	what    string
	dir     string
	bytes   int64
	passing bool // it is deleted when the next one has been written
}

// pythonDisk is what the environment of the converter takes.
const pythonDisk = 2 << 30

// diskNeeds are what will be written before anything is measured, in order: all
// downloads, then model by model what is made of them. What
// a conversion of files that are here takes is left to it: it may be there.
func (s *setup) diskNeeds(pulls map[string]*hub.Plan) (list []diskNeed, err error) {
	if s.makesPython() {
		list = append(list, diskNeed{what: "Python environment of the converter", dir: pythonDir(convertEnv), bytes: pythonDisk})
	}
	for _, key := range s.plan.Models {
		if todo := pulls[key]; todo != nil && todo.Fetch() > 0 {
			list = append(list, diskNeed{what: todo.Repo + " from the hub", dir: todo.Cache, bytes: todo.Fetch()})
		}
	}
	for _, key := range s.plan.Models {
		if pulls[key] != nil {
			spec, err := conversion("", s.dtype, s.engineDir)
			if err != nil {
				return nil, err
			}
			shape := s.models[key].shape
			if f16 := 2 * shape.Params; shape.TensorBytes < f16 {
				list = append(list, diskNeed{what: key + " in F16 until it is quantized", dir: spec.CacheDir, bytes: f16, passing: true})
			}
			list = append(list, diskNeed{what: key + " as GGUF", dir: spec.CacheDir, bytes: shape.TensorBytes})
		} else if s.weights == synthetic && s.pathOf(key) == "" {
			spec := s.synthSpec(key)
			dir, err := syntheticDir(spec)
			if err != nil {
				return nil, err
			}
			bytes, err := spec.ToWrite(dir)
			if err != nil {
				return nil, refuse("--weights synthetic: %w", err)
			}
			if bytes > 0 {
				list = append(list, diskNeed{what: "synthetic weights of " + key, dir: dir, bytes: bytes})
			}
		}
	}
	return list, nil
}

// atOnce are those of the needs that lie on the disk when most of it is taken,
// and their sum.
func atOnce(needs []diskNeed) (parts []diskNeed, most int64) {
	var now []diskNeed
	bytes := int64(0)
	for i, n := range needs {
		now, bytes = append(now, n), bytes+n.bytes
		if bytes > most {
			parts, most = slices.Clone(now), bytes
		}
		if i > 0 && needs[i-1].passing {
			now, bytes = slices.Delete(now, len(now)-2, len(now)-1), bytes-needs[i-1].bytes
		}
	}
	return parts, most
}

// checkDisk refuses what the disks have no room for; otherwise is what can be
// done besides making room.
func checkDisk(needs []diskNeed, otherwise string) error {
	type disk struct {
		free  int64
		needs []diskNeed
	}
	var disks []*disk // in the order of needs
	at := map[uint64]*disk{}
	for _, n := range needs {
		dir := existing(n.dir)
		var st unix.Stat_t
		var room unix.Statfs_t
		if err := errors.Join(unix.Stat(dir, &st), unix.Statfs(dir, &room)); err != nil {
			return refuse("the free space of %s: %w", dir, err)
		}
		d := at[st.Dev]
		if d == nil {
			d = &disk{free: int64(room.Bavail) * room.Bsize}
			disks, at[st.Dev] = append(disks, d), d
		}
		d.needs = append(d.needs, n)
	}
	for _, d := range disks {
		parts, most := atOnce(d.needs)
		if most <= d.free {
			continue
		}
		var terms []string
		for _, n := range parts {
			terms = append(terms, n.what+" "+amount(n.bytes))
		}
		are := "are needed"
		if len(parts) < len(d.needs) {
			are += " at once"
		}
		return refuse("the disk of %s has %s free, and %s %s (%s): make room, %s",
			d.needs[0].dir, amount(d.free), amount(most), are, strings.Join(terms, " + "), otherwise)
	}
	return nil
}

// existing is the directory itself or the nearest above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// notHereYet ends a dry run: its text says what would be written first.
type notHereYet []diskNeed

func (n notHereYet) Error() string {
	var parts []string
	for _, need := range n {
		parts = append(parts, fmt.Sprintf("%s, %s, into %s", need.what, amount(need.bytes), need.dir))
	}
	return "not here yet, and made first: " + strings.Join(parts, "; ")
}

// makePython makes the Python environment of the converter, as
// scripts/python-env.sh does.
func makePython(ctx context.Context, show *liveLine) error {
	failed := func(err error) error {
		return fmt.Errorf("the Python environment of the converter was not made: %w: run scripts/python-env.sh %s, or give --gguf FILE, or --weights synthetic", err, convertEnv)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return failed(err)
	}
	dir, err := unpack(scripts.PythonEnv, filepath.Join(cache, "nativebench", "scripts"))
	if err != nil {
		return failed(err)
	}
	log := filepath.Join(dir, convertEnv+".log")
	show.line(fmt.Sprintf("making the Python environment of the converter to GGUF, once (%s): %s; log: %s", amount(pythonDisk), pythonDir(convertEnv), log))
	show.draw("this takes some minutes")
	defer show.erase()
	began := time.Now()
	if err := launch.Run(ctx, launch.Command{
		Name: "scripts/python-env.sh", LogPath: log, Argv: []string{"bash", filepath.Join(dir, "python-env.sh"), convertEnv},
	}); err != nil {
		return failed(err)
	}
	show.line("made in " + short(time.Since(began)))
	return nil
}

// unpack writes files into a directory of their own, named by what they hold,
// under parent.
func unpack(files fs.FS, parent string) (dir string, err error) {
	sum := sha256.New()
	if err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, name)
		fmt.Fprintf(sum, "%s %d\n%s", name, len(content), content)
		return err
	}); err != nil {
		return "", err
	}
	dir = filepath.Join(parent, "python-env-"+hex.EncodeToString(sum.Sum(nil)[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp(parent, ".new-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	if err := os.CopyFS(temp, files); err != nil {
		return "", err
	}
	if err := os.Rename(temp, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}
