package convert

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// directory is a Hugging Face model directory, looked at but not converted.
type directory struct {
	path, name      string
	hubID, revision string // "" where the path does not tell
	synthetic       bool
	seed            uint64

	files []string // names of what the converter may read, sorted
	total int64    // their bytes

	// Numbers of all tensors: of those that GGUF keeps as F32, which have one
	// dimension or are GPT-2's table of positions, and of all others.
	singles, matrices int64
	params            int64 // both; 0: not known, the weights are not safetensors
	weights           int64 // bytes of the weights' files
}

// maxSmall bounds files that are read whole: config.json and the headers of
// safetensors.
const maxSmall = 100 << 20

// readDirectory looks at a directory. The error says what is missing.
func readDirectory(path string) (*directory, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d := &directory{path: abs, name: filepath.Base(abs)}
	entries, err := os.ReadDir(abs)
	if err != nil {
		return nil, fmt.Errorf("%s: a Hugging Face model directory is needed: %w", path, err)
	}
	var tensors, pickles []string
	for _, e := range entries {
		name := e.Name()
		st, err := os.Stat(filepath.Join(abs, name)) // the hub's cache is of links
		if err != nil {
			return nil, fmt.Errorf("%s: %w; download it again", path, err)
		}
		if strings.HasPrefix(name, ".") || !st.Mode().IsRegular() || foreign.MatchString(name) {
			continue
		}
		switch filepath.Ext(name) {
		case ".safetensors":
			tensors = append(tensors, name)
		case ".bin":
			pickles = append(pickles, name)
		default:
			d.files = append(d.files, name)
		}
	}
	if !slices.Contains(d.files, "config.json") {
		return nil, fmt.Errorf("%s has no config.json: it is not a Hugging Face model directory", path)
	}
	// The converter prefers safetensors too.
	weights := tensors
	if len(weights) == 0 {
		weights = pickles
	}
	if len(weights) == 0 {
		return nil, fmt.Errorf("%s has no weights (*.safetensors, pytorch_model*.bin): download them all", path)
	}
	if err := d.wholeIndex(tensors); err != nil {
		return nil, err
	}
	d.files = append(d.files, weights...)
	slices.Sort(d.files)
	for _, name := range d.files {
		st, err := os.Stat(filepath.Join(abs, name))
		if err != nil {
			return nil, err
		}
		d.total += st.Size()
		if slices.Contains(weights, name) {
			d.weights += st.Size()
		}
	}
	for _, name := range tensors {
		if err := d.readHeader(name); err != nil {
			return nil, err
		}
	}
	d.params = d.singles + d.matrices
	d.identify()
	return d, nil
}

// foreign are weights and other things that the converter never reads.
var foreign = regexp.MustCompile(`\.(gguf|h5|msgpack|onnx|ot|tflite|mlmodel|pth|png|jpg|lock|incomplete)$`)

// wholeIndex refuses a directory that lacks one of the files its index names.
func (d *directory) wholeIndex(have []string) error {
	const name = "model.safetensors.index.json"
	if !slices.Contains(d.files, name) || len(have) == 0 {
		return nil
	}
	var index struct {
		Map map[string]string `json:"weight_map"`
	}
	if err := d.readJSON(name, &index); err != nil {
		return err
	}
	for _, file := range index.Map {
		if !slices.Contains(have, file) {
			return fmt.Errorf("%s lacks %s, which its %s names: download it all", d.path, file, name)
		}
	}
	return nil
}

func (d *directory) readJSON(name string, into any) error {
	path := filepath.Join(d.path, name)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxSmall)).Decode(into); err != nil {
		return fmt.Errorf("%s is not JSON: %w", path, err)
	}
	return nil
}

// readHeader counts a safetensors file's numbers
// (https://huggingface.co/docs/safetensors: eight bytes of length,
// little-endian, and a JSON object) and refuses a file that is cut.
func (d *directory) readHeader(name string) error {
	path := filepath.Join(d.path, name)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var length uint64
	if err := binary.Read(f, binary.LittleEndian, &length); err != nil || length > maxSmall || int64(length) > st.Size()-8 {
		return fmt.Errorf("%s is not a whole safetensors file: download it again", path)
	}
	var header map[string]json.RawMessage
	if err := json.NewDecoder(io.LimitReader(f, int64(length))).Decode(&header); err != nil {
		return fmt.Errorf("%s is not a safetensors file: %w", path, err)
	}
	end := int64(0)
	for key, raw := range header {
		if key == "__metadata__" || constant.MatchString(key) {
			continue
		}
		var t struct {
			Shape   []int64  `json:"shape"`
			Offsets [2]int64 `json:"data_offsets"`
		}
		if err := json.Unmarshal(raw, &t); err != nil {
			return fmt.Errorf("%s: tensor %s: %w", path, key, err)
		}
		n := int64(1)
		for _, dim := range t.Shape {
			n *= dim
		}
		if len(t.Shape) <= 1 || strings.HasSuffix(key, "wpe.weight") {
			d.singles += n
		} else {
			d.matrices += n
		}
		end = max(end, t.Offsets[1])
	}
	if have := st.Size() - 8 - int64(length); have < end {
		return fmt.Errorf("%s is cut: it has %d bytes of tensors, not %d: download it again", path, have, end)
	}
	return nil
}

// constant are tensors of old files that are no parameters: masks and frequencies.
var constant = regexp.MustCompile(`\.attn\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$`)

// snapshot is how a path in the hub's cache ends
// (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
var snapshot = regexp.MustCompile(`/models--([^/]+)/snapshots/([0-9a-f]{40})$`)

// identify takes what the path and config.json tell of the model.
func (d *directory) identify() {
	if m := snapshot.FindStringSubmatch(filepath.ToSlash(d.path)); m != nil {
		d.hubID, d.revision = strings.Replace(m[1], "--", "/", 1), m[2]
		d.name = d.hubID[strings.Index(d.hubID, "/")+1:]
	}
	var config struct {
		Ours struct {
			Synthetic bool   `json:"synthetic"`
			Seed      uint64 `json:"seed"`
		} `json:"nativebench"`
		Type string `json:"model_type"`
	}
	// A config that is not JSON is the converter's to complain about.
	if d.readJSON("config.json", &config) == nil && config.Ours.Synthetic {
		d.synthetic, d.seed = true, config.Ours.Seed
		d.name = config.Type + ", synthetic weights"
	}
}

// hash hashes all files that the converter may read.
func (d *directory) hash(ctx context.Context, progress Progress) ([]File, error) {
	var files []File
	before := int64(0)
	for _, name := range d.files {
		sum, size, err := hashFile(ctx, filepath.Join(d.path, name), func(done int64) {
			progress("checking "+name, before+done, d.total)
		})
		if err != nil {
			return nil, err
		}
		before += size
		files = append(files, File{Path: name, Bytes: size, SHA256: sum})
	}
	return files, nil
}

// hashFile returns the SHA-256 and the size of a file; tell, which may be nil,
// is told every few megabytes how many bytes are read.
func hashFile(ctx context.Context, path string, tell func(done int64)) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h, buf, size := sha256.New(), make([]byte, 4<<20), int64(0)
	for {
		n, err := io.ReadFull(f, buf)
		h.Write(buf[:n])
		size += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return hex.EncodeToString(h.Sum(nil)), size, nil
		case err != nil:
			return "", 0, fmt.Errorf("reading %s: %w", path, err)
		case ctx.Err() != nil:
			return "", 0, context.Cause(ctx)
		}
		if tell != nil {
			tell(size)
		}
	}
}

// Bytes that a number takes at most in GGUF: Q8_0 has blocks of 32 numbers in
// 34 bytes; Q4_K_M keeps some tensors as Q6_K, of 256 numbers in 210 bytes, and
// where rows are no multiple of 256 falls back on Q8_0.
var bytesPerNumber = map[string]float64{"f16": 2, "bf16": 2, "q8_0": 34. / 32, "q4_k_m": 34. / 32}

// bytes is about how large the GGUF file will be, and no less.
func (d *directory) bytes(typ string) int64 {
	other := d.total - d.weights // the vocabulary, about as large there
	if d.params == 0 {
		return d.weights + other
	}
	return int64(bytesPerNumber[typ]*float64(d.matrices)) + 4*d.singles + other
}
