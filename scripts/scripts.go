// Package scripts holds what nativebench carries along of this directory.
package scripts

import "embed"

// TransformersServer is transformers_server.py, the plain server around Hugging
// Face Transformers.
//
//go:embed transformers_server.py
var TransformersServer []byte

// PythonEnv is python-env.sh and what it makes the environment of the conversion
// to GGUF of.
//
//go:embed python-env.sh python/convert.in python/convert.txt
var PythonEnv embed.FS
