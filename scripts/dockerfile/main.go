//go:build linux

// Dockerfile runs the steps of a Dockerfile in plain roots, without a container
// engine: every RUN line as it stands, after its ARG, ENV, COPY and WORKDIR, and
// then the image's health check and command as its user. A base image is a
// directory that stands in for it; each stage is an overlay above it, whose size
// is that of the layers.
//
//	unshare --mount --propagation private \
//	  go run ./scripts/dockerfile -base IMAGE=ROOT [-base ...] -work DIR [-arg NAME=VALUE] [-cache DIR]
//	  [-bind OUTSIDE:INSIDE] [-then COMMAND] [-summary FILE] Dockerfile.cuda
//
// It needs root and a mount namespace of its own, where its mounts end with it
// (scripts/check-dockerfile.sh does both). What it does not understand, it
// refuses. The directory is kept: DIR/STAGE-N.log is what line N printed.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"golang.org/x/sys/unix"
)

// pairs collects a repeatable flag of the form A=B.
type pairs struct {
	sep  string
	list [][2]string
}

func (p *pairs) String() string { return "" }

func (p *pairs) Set(s string) error {
	a, b, ok := strings.Cut(s, p.sep)
	if !ok || a == "" {
		return fmt.Errorf("wants A%sB", p.sep)
	}
	p.list = append(p.list, [2]string{a, b})
	return nil
}

func (p *pairs) get(key string) (string, bool) {
	for _, kv := range p.list {
		if kv[0] == key {
			return kv[1], true
		}
	}
	return "", false
}

// stage is one FROM and what follows.
type stage struct {
	name   string
	lower  []string // directories beneath, the uppermost first
	upper  string
	root   string // where the overlay is mounted
	env    map[string]string
	vars   map[string]string // ARG and ENV, for expansion
	user   string            // UID:GID; empty: root
	dir    string
	health []string
	entry  []string
	cmd    []string
}

// result is one line of the summary.
type result struct {
	stage, what string
	took        time.Duration
	grew        int64 // bytes of the stage's layers
	said        string
}

type checker struct {
	bases, args, binds pairs
	work, cache        string
	context            string // the files that the engine would be sent
	global             map[string]string
	stages             []*stage
	results            []result
}

func main() {
	c := checker{bases: pairs{sep: "="}, args: pairs{sep: "="}, binds: pairs{sep: ":"}, global: map[string]string{}}
	flag.Var(&c.bases, "base", "`IMAGE=ROOT`: a directory that stands in for a base image (without its digest)")
	flag.Var(&c.args, "arg", "`NAME=VALUE` of an ARG")
	flag.Var(&c.binds, "bind", "`OUTSIDE:INSIDE` a path that every step sees")
	flag.StringVar(&c.work, "work", "", "`DIR` for layers and logs")
	flag.StringVar(&c.cache, "cache", "", "`DIR` that holds the cache mounts, by their id")
	summary := flag.String("summary", "", "`FILE` for the table of steps, in Markdown; default: standard output")
	var then []string
	flag.Func("then", "`COMMAND` to run in the finished image, as its user; can be repeated", func(s string) error {
		then = append(then, s)
		return nil
	})
	flag.Parse()
	err := c.run(flag.Arg(0), then)
	table := c.table()
	if *summary != "" && len(c.results) > 0 {
		err = errors.Join(err, os.WriteFile(*summary, []byte(table), 0o644))
	} else {
		fmt.Print(table)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "check-dockerfile:", err)
		os.Exit(1)
	}
}

func (c *checker) run(path string, then []string) error {
	switch {
	case path == "" || flag.NArg() != 1 || c.work == "" || c.cache == "":
		return errors.New("wants -base IMAGE=ROOT, -work DIR, -cache DIR and one Dockerfile")
	case os.Geteuid() != 0:
		return errors.New("needs root, for mounts and chroot")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	steps, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.MkdirAll(c.work, 0o755); err != nil {
		return err
	}
	if err := c.export(filepath.Dir(path)); err != nil {
		return err
	}
	for _, in := range steps {
		if err := c.step(in); err != nil {
			return fmt.Errorf("%s, line %d: %s: %w", path, in.line, in.name, err)
		}
	}
	return c.finish(then)
}

// export copies what an engine would be sent: the files that git knows or would
// take, less those of .dockerignore.
func (c *checker) export(dir string) error {
	c.context = filepath.Join(c.work, "context")
	if err := os.RemoveAll(c.context); err != nil {
		return err
	}
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = dir
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	ignored, err := os.Open(filepath.Join(dir, ".dockerignore"))
	if err != nil {
		return err
	}
	defer ignored.Close()
	patterns, err := ignorefile.ReadAll(ignored)
	if err != nil {
		return err
	}
	ignore, err := patternmatcher.New(patterns)
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		skip, err := ignore.MatchesOrParentMatches(name)
		if err != nil {
			return err
		}
		from, to := filepath.Join(dir, name), filepath.Join(c.context, name)
		if _, gone := os.Lstat(from); skip || gone != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := command("cp", "-a", "--no-preserve=ownership", from, to); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program of this machine, quietly.
func command(argv ...string) error {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func (c *checker) step(in instruction) error {
	if in.name == "FROM" {
		return c.from(in.text)
	}
	if in.name == "ARG" {
		name, value, has := strings.Cut(in.text, "=")
		vars := c.global
		if len(c.stages) > 0 {
			vars = c.now().vars
		}
		switch given, ok := c.args.get(name); {
		case ok:
			vars[name] = given
		case has:
			vars[name] = strings.Trim(value, `"`)
		default:
			vars[name] = c.global[name]
		}
		return nil
	}
	if len(c.stages) == 0 {
		return errors.New("comes before FROM")
	}
	s := c.now()
	switch in.name {
	case "RUN":
		return c.runLine(s, in)
	case "HEALTHCHECK":
		_, rest := flags(in.text)
		argv, ok := strings.CutPrefix(rest, "CMD ")
		if !ok {
			return errors.New("only HEALTHCHECK CMD is understood")
		}
		return json.Unmarshal([]byte(argv), &s.health)
	case "ENTRYPOINT":
		return json.Unmarshal([]byte(in.text), &s.entry)
	case "CMD":
		return json.Unmarshal([]byte(in.text), &s.cmd)
	}
	text, err := expand(in.text, s.vars)
	if err != nil {
		return err
	}
	switch in.name {
	case "ENV", "LABEL":
		for _, kv := range words(text) {
			name, value, ok := strings.Cut(kv, "=")
			if !ok {
				return fmt.Errorf("%q is not NAME=VALUE", kv)
			}
			if in.name == "ENV" {
				s.env[name], s.vars[name] = value, value
			}
		}
	case "WORKDIR":
		s.dir = text
		return os.MkdirAll(filepath.Join(s.root, text), 0o755)
	case "USER":
		if !strings.Contains(text, ":") {
			return fmt.Errorf("%q is not UID:GID", text)
		}
		s.user = text
	case "COPY":
		return c.copy(s, text)
	default:
		return errors.New("is not understood here")
	}
	return nil
}

func (c *checker) now() *stage { return c.stages[len(c.stages)-1] }

// from begins a stage: an overlay over a base's stand-in or an earlier stage.
func (c *checker) from(text string) error {
	text, err := expand(text, c.global)
	if err != nil {
		return err
	}
	f := words(text)
	if len(f) != 3 || !strings.EqualFold(f[1], "AS") {
		return fmt.Errorf("%q is not IMAGE AS NAME", text)
	}
	s := &stage{name: f[2], dir: "/", env: map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
	if at := slices.IndexFunc(c.stages, func(s *stage) bool { return s.name == f[0] }); at >= 0 {
		was := c.stages[at]
		s.lower = append([]string{was.upper}, was.lower...)
		s.env, s.user, s.dir = maps.Clone(was.env), was.user, was.dir
		s.health, s.entry, s.cmd = was.health, was.entry, was.cmd
	} else {
		image, _, _ := strings.Cut(f[0], "@")
		root, ok := c.bases.get(image)
		if !ok {
			return fmt.Errorf("nothing stands in for %s: give -base %s=ROOT", image, image)
		}
		s.lower = []string{root}
	}
	s.vars = maps.Clone(s.env)
	home := filepath.Join(c.work, s.name)
	if err := os.RemoveAll(home); err != nil {
		return err
	}
	s.upper, s.root = filepath.Join(home, "layers"), filepath.Join(home, "root")
	for _, dir := range []string{s.upper, s.root, filepath.Join(home, "work")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(s.lower, ":"), s.upper, filepath.Join(home, "work"))
	if err := unix.Mount("overlay", s.root, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay %s: %w", options, err)
	}
	for _, m := range [][2]string{{"/proc", "/proc"}, {"/dev", "/dev"}, {"/etc/resolv.conf", "/etc/resolv.conf"}} {
		if err := c.bind(s, m[0], m[1]); err != nil {
			return err
		}
	}
	for _, m := range c.binds.list {
		if err := c.bind(s, m[0], m[1]); err != nil {
			return err
		}
	}
	c.stages = append(c.stages, s)
	return nil
}

// bind shows a path of this machine in a stage.
func (c *checker) bind(s *stage, outside, inside string) error {
	to := filepath.Join(s.root, inside)
	st, err := os.Stat(outside)
	if err != nil {
		return err
	}
	switch _, missing := os.Stat(to); {
	case missing == nil:
	case st.IsDir():
		err = os.MkdirAll(to, 0o755)
	default:
		if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
			err = os.WriteFile(to, nil, 0o644)
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(outside, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", outside, to, err)
	}
	return nil
}

func (c *checker) copy(s *stage, text string) error {
	opts, rest := flags(text)
	from := c.context
	for _, o := range opts {
		name, ok := strings.CutPrefix(o, "--from=")
		at := slices.IndexFunc(c.stages, func(s *stage) bool { return s.name == name })
		if !ok || at < 0 {
			return fmt.Errorf("%s is not understood here", o)
		}
		from = c.stages[at].root
	}
	paths := words(rest)
	if len(paths) < 2 {
		return fmt.Errorf("%q is not SOURCE... TARGET", rest)
	}
	to := paths[len(paths)-1]
	if !filepath.IsAbs(to) {
		to = filepath.Join(s.dir, to)
	}
	to = filepath.Join(s.root, to)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, p := range paths[:len(paths)-1] {
		source := filepath.Join(from, p)
		if st, err := os.Stat(source); err != nil {
			return err
		} else if st.IsDir() {
			source += "/." // what is in it
		}
		if err := command("cp", "-a", "--no-preserve=ownership", source, to+"/"); err != nil {
			return err
		}
	}
	return nil
}

// runLine runs one RUN line and notes how it went.
func (c *checker) runLine(s *stage, in instruction) error {
	opts, line := flags(in.text)
	for _, o := range opts {
		mount, ok := strings.CutPrefix(o, "--mount=")
		if !ok {
			return fmt.Errorf("%s is not understood here", o)
		}
		of := map[string]string{}
		for kv := range strings.SplitSeq(mount, ",") {
			k, v, _ := strings.Cut(kv, "=")
			of[k] = v
		}
		if of["type"] != "cache" || of["id"] == "" || of["target"] == "" {
			return fmt.Errorf("%s is not a cache mount with id and target", o)
		}
		dir := filepath.Join(c.cache, of["id"])
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := c.bind(s, dir, of["target"]); err != nil {
			return err
		}
		defer unix.Unmount(filepath.Join(s.root, of["target"]), unix.MNT_DETACH)
	}
	env := maps.Clone(s.vars) // an ARG is a variable of the steps after it
	home, err := homeOf(s.root, cmp.Or(s.user, "0:0"))
	if err != nil {
		return err
	}
	env["HOME"] = home
	was, err := size(s.upper)
	if err != nil {
		return err
	}
	took, said, err := c.execute(s, cmp.Or(s.user, "0:0"), env, fmt.Sprintf("%s-%d.log", s.name, in.line), "/bin/sh", "-c", line)
	is, sizeErr := size(s.upper)
	c.results = append(c.results, result{s.name, "RUN " + line, took, is - was, said})
	return errors.Join(err, sizeErr)
}

// execute runs a command in a stage's root, as a user; said is "ok" or how it
// ended.
func (c *checker) execute(s *stage, user string, env map[string]string, logName string, argv ...string) (took time.Duration, said string, err error) {
	path := filepath.Join(c.work, logName)
	log, err := os.Create(path)
	if err != nil {
		return 0, "", err
	}
	defer log.Close()
	line := []string{"--userspec=" + user, s.root, "/usr/bin/env", "-i", "--chdir=" + s.dir}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		line = append(line, k+"="+env[k])
	}
	cmd := exec.Command("chroot", append(line, argv...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	fmt.Fprintf(os.Stderr, "%s %s: %s\n", time.Now().Format(time.TimeOnly), s.name, strings.Join(argv, " "))
	began := time.Now()
	err = cmd.Run()
	took = time.Since(began)
	if err == nil {
		return took, "ok", nil
	}
	text, _ := os.ReadFile(path)
	last := strings.Split(strings.TrimSpace(string(text)), "\n")
	return took, err.Error(), fmt.Errorf("%s: %w; the end of %s:\n%s", strings.Join(argv, " "), err, path, strings.Join(last[max(0, len(last)-20):], "\n"))
}

// homeOf is the home directory of a user, UID:GID, in a root.
func homeOf(root, user string) (string, error) {
	text, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		return "", err
	}
	uid, _, _ := strings.Cut(user, ":")
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ":"); len(f) == 7 && f[2] == uid {
			return f[5], nil
		}
	}
	return "", fmt.Errorf("the image has no user %s", uid)
}

// finish does as an engine does with the finished image: the health check, the
// command, and what else was asked for, as the image's user.
func (c *checker) finish(then []string) error {
	s := c.now()
	user := cmp.Or(s.user, "0:0")
	home, err := homeOf(s.root, user)
	if err != nil {
		return err
	}
	env := maps.Clone(s.env)
	env["HOME"] = home
	all := [][]string{s.health, append(slices.Clone(s.entry), s.cmd...)}
	for _, t := range then {
		all = append(all, []string{"/bin/sh", "-c", t})
	}
	for i, argv := range all {
		if len(argv) == 0 {
			continue
		}
		what := []string{"HEALTHCHECK", "ENTRYPOINT + CMD", "then"}[min(i, 2)]
		took, said, err := c.execute(s, user, env, fmt.Sprintf("%s-then-%d.log", s.name, i), argv...)
		c.results = append(c.results, result{s.name, fmt.Sprintf("%s %s, as %s", what, strings.Join(argv, " "), user), took, 0, said})
		if err != nil {
			return err
		}
	}
	return nil
}

// size is what the regular files below a directory hold, in bytes; linked ones
// count once.
func size(dir string) (int64, error) {
	var sum int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Nlink == 1 || !seen[st.Ino] {
			if ok {
				seen[st.Ino] = true
			}
			sum += info.Size()
		}
		return nil
	})
	return sum, err
}

// table is the summary, in Markdown.
func (c *checker) table() string {
	var b strings.Builder
	b.WriteString("| stage | step | result | time | layers grew by |\n|---|---|---|---:|---:|\n")
	for _, r := range c.results {
		fmt.Fprintf(&b, "| %s | `%s` | %s | %.1f s | %.1f MB |\n", r.stage, r.what, r.said, r.took.Seconds(), float64(r.grew)/1e6)
	}
	for _, s := range c.stages {
		layers, err := size(s.upper)
		if err != nil {
			fmt.Fprintf(&b, "\n%s: %v\n", s.name, err)
			continue
		}
		var below int64
		for _, dir := range s.lower {
			n, _ := size(dir)
			below += n
		}
		fmt.Fprintf(&b, "\n%s: layers of %.1f MB over %.1f MB (%s); sums of the files' sizes, uncompressed.\n", s.name, float64(layers)/1e6, float64(below)/1e6, strings.Join(s.lower, " + "))
	}
	return b.String()
}
