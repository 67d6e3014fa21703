package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/convert"
	"github.com/nativebench/nativebench/internal/hub"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/native"
)

// convertEnv names the Python environment of the conversion to GGUF.
const convertEnv = "convert"

func convertCommand() *cli.Command {
	return &cli.Command{
		Name: "convert", Usage: "make a GGUF file of a model of Hugging Face", ArgsUsage: "MODEL|DIR",
		Description: "Examples:\n" +
			"   nativebench models convert phi-2          what models pull phi-2 has downloaded\n" +
			"   nativebench models convert --type q4_k_m --out phi-2.gguf ~/models/phi-2\n\n" +
			"llama.cpp's own converter and quantizer do it, in the Python environment that\n" +
			"scripts/python-env.sh convert makes. Without --out the file goes into the cache, where\n" +
			"it is found again by the hashes of what it was made from; its path is printed. Beside\n" +
			"it a description is kept (FILE.gguf.json), which compare writes into its manifest.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "type", Value: convert.Types()[0], Usage: "`TYPE`: " + strings.Join(convert.Types(), ", ")},
			&cli.StringFlag{Name: "revision", Value: hub.DefaultRevision, Usage: "`REV`: of a MODEL in the hub's cache: branch, tag or commit"},
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "`FILE`: to make", DefaultText: "one in the cache"},
			&cli.StringFlag{Name: "engine-dir", Usage: "`DIR`: with the converter and the quantizer in it", DefaultText: "$NATIVEBENCH_ENGINE_DIR, or engine/ beside this program"},
		},
		Action: convertAction,
	}
}

func convertAction(c *cli.Context) error {
	if c.NArg() != 1 {
		return refuse("%s takes one model (%s) or one Hugging Face directory", c.Command.Name, modelKeys())
	}
	dir, err := sourceDirectory(c.Args().First(), c.String("revision"))
	if err != nil {
		return err
	}
	engineDir := c.String("engine-dir")
	if engineDir == "" {
		engineDir = native.DefaultDir()
	}
	spec, err := conversion(dir, c.String("type"), engineDir)
	if err != nil {
		return err
	}
	spec.Out = absolute(c.String("out"))
	if err := spec.Check(); err != nil {
		return usageError{err}
	}
	stop := listen(c.Context, c.App.ErrWriter)
	defer stop.close()
	ctx, cancel := stop.either()
	defer cancel()
	r, err := convertShown(ctx, spec, newLiveLine(c.App.ErrWriter))
	if err != nil {
		if stop.stopped() {
			return exitStatus(exitInterrupted)
		}
		return err
	}
	did := "made in " + short(time.Duration(r.TookNS))
	if r.Reused {
		did = "there already, made " + r.Began.Format(time.DateOnly)
	}
	fmt.Fprintf(c.App.ErrWriter, "%s, %s, %s: %s\n", r.Name, r.Type, gib(r.Bytes), did)
	fmt.Fprintln(c.App.Writer, r.Path)
	return nil
}

// sourceDirectory is the Hugging Face directory of what was named: a model of
// the table is looked for in the hub's cache.
func sourceDirectory(name, revision string) (string, error) {
	m, err := plan.ModelByKey(name)
	if err != nil {
		if st, err := os.Stat(name); err != nil || !st.IsDir() {
			return "", refuse("models convert %s: there is no such directory, nor a model of that name: choose from %s", name, modelKeys())
		}
		return name, nil
	}
	s, err := hub.Find(m.HubID, revision)
	switch {
	case errors.Is(err, hub.ErrMissing):
		return "", refuse("models convert %s: %w: download it (nativebench models pull %s), or name its directory", name, err, name)
	case err != nil:
		return "", refuse("models convert %s: %w", name, err)
	}
	return s.Dir, nil
}

// conversion says how a directory is converted on this machine.
func conversion(dir, typ, engineDir string) (convert.Spec, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return convert.Spec{}, refuse("a converted model needs a cache directory: %w; set XDG_CACHE_HOME, or give --gguf PATH", err)
	}
	return convert.Spec{
		HFDir: dir, Type: typ, CacheDir: filepath.Join(cache, "nativebench", "models", "converted"),
		EngineDir: engineDir, PythonDir: pythonDir(convertEnv),
	}, nil
}

// convertShown converts and shows how far it is.
func convertShown(ctx context.Context, spec convert.Spec, show *liveLine) (*convert.Result, error) {
	defer show.erase()
	said := ""
	return convert.Convert(ctx, spec, func(what string, done, total int64) {
		step, _, _ := strings.Cut(what, " ")
		if step != said && step != "checking" { // files are many
			said = step
			show.line(what + ": " + spec.HFDir)
		}
		if total > 0 {
			show.draw(fmt.Sprintf("%s, %.0f %% of %s", what, 100*float64(done)/float64(total), gib(total)))
		} else {
			show.draw(what)
		}
	})
}

// describe adds to a model in the manifest what is known of where its file came
// from, if nativebench converted it.
func describe(m *results.Model) error {
	r, err := convert.Read(m.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && r.SHA256 != m.SHA256 {
		err = fmt.Errorf("it has SHA-256 %.12s, not %.12s", m.SHA256, r.SHA256)
	}
	if err != nil {
		return refuse("%s is not the file that %s beside it describes (%w): convert it again, or remove that description", m.Path, filepath.Base(m.Path)+convert.Suffix, err)
	}
	m.Synthetic, m.Seed = m.Synthetic || r.Synthetic, max(m.Seed, r.Seed)
	m.Source = &results.Source{
		Path: r.Source, HubID: r.HubID, Revision: r.Revision,
		Converter: r.Converter, Python: r.Python, Began: r.Began, TookNS: r.TookNS,
	}
	for _, f := range r.Files {
		m.Source.Files = append(m.Source.Files, results.SourceFile{Path: f.Path, Bytes: f.Bytes, SHA256: f.SHA256})
	}
	return nil
}
