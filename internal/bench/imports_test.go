package bench_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nativebench/nativebench/"

// arrows says which packages of ours each package may depend on, directly or
// not. "std" allows the standard library alone. cmd and scripts may use
// everything.
func arrows() map[string][]string {
	return map[string][]string{
		"internal/bench":                   {"std"},
		"internal/stats":                   {},
		"internal/gguf":                    {},
		"internal/telemetry":               {},
		"internal/telemetry/nvml":          {"internal/telemetry"},
		"internal/telemetry/nvml/nvmltest": {},
		"internal/launch":                  {},
		"internal/synth":                   {"internal/gguf", "internal/plan", "internal/bench"},
		"internal/tokenizer":               {"internal/gguf"},
		"internal/hub":                     {},
		"internal/convert":                 {"internal/gguf", "internal/launch"},
		"internal/hub/hubtest":             {},
		"internal/bench/benchtest":         {"internal/bench"},
		"internal/verify":                  {"internal/stats"},
		"internal/plan":                    {"internal/bench"},
		"internal/results":                 {"internal/bench"},
		"internal/measure":                 {"internal/stats", "internal/bench"},
		"internal/report":                  {"internal/measure", "internal/results", "internal/stats", "internal/bench"},
		"internal/timeline":                {"internal/results", "internal/bench"},
		"internal/timeline/timelinetest":   {},
		"internal/runner":                  {"internal/plan", "internal/results", "internal/telemetry", "internal/bench"},
		"native":                           {"internal/bench"},
		"httpbackends":                     {"internal/bench"},
	}
}

// TestImportArrows keeps the layers apart: what a package may know is part of
// the design.
func TestImportArrows(t *testing.T) {
	cmd := exec.Command("go", "list", "-f", "{{.ImportPath}}\t{{join .Deps \" \"}}", module+"...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	allowed := arrows()
	seen := 0
	for line := range strings.Lines(string(out)) {
		path, deps, _ := strings.Cut(strings.TrimSpace(line), "\t")
		pkg := strings.TrimPrefix(path, module)
		if strings.HasPrefix(pkg, "cmd/") || pkg == "scripts" || strings.HasPrefix(pkg, "scripts/") {
			continue
		}
		may, ok := allowed[pkg]
		if !ok {
			t.Errorf("package %s has no row in arrows: say what it may depend on", pkg)
			continue
		}
		seen++
		for _, dep := range strings.Fields(deps) {
			inner, ours := strings.CutPrefix(dep, module)
			switch {
			case ours && !slices.Contains(may, inner):
				t.Errorf("%s depends on %s, which its row does not allow", pkg, inner)
			case !ours && slices.Contains(may, "std") && strings.Contains(strings.Split(dep, "/")[0], "."):
				t.Errorf("%s depends on %s; it may use the standard library alone", pkg, dep)
			}
		}
	}
	if seen < 5 {
		t.Fatalf("only %d packages were looked at: the listing is wrong", seen)
	}
}
