package main

import (
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/plan"
)

func runCommand(known registry) *cli.Command {
	d := plan.Default()
	d.Backends = []string{known[0].name}
	return &cli.Command{
		Name:  "run",
		Usage: "measure one backend alone",
		Description: "Examples:\n" +
			"   nativebench run                                   the bare model, all tasks\n" +
			"   nativebench run --backend llama-server --concurrency 1,4,16 --mode stream\n" +
			"   nativebench run --gguf model.gguf --task chat --format json > chat.json\n\n" +
			"It takes the flags of compare and makes a run directory of the same form, so that\n" +
			"nativebench report DIR DIR… sets several runs side by side.",
		Flags: slices.Concat(
			[]cli.Flag{&cli.StringFlag{Name: "backend", Category: flagsWhat, Value: d.Backends[0], Usage: "`NAME`: the one to measure"}},
			planFlags(), weightFlags(), outputFlags()),
		Action: func(c *cli.Context) error { return measureAction(c, known, d) },
	}
}
