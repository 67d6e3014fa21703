// Package scripts holds what nativebench carries along of this directory.
package scripts

import _ "embed"

// TransformersServer is transformers_server.py, the plain server around Hugging
// Face Transformers.
//
//go:embed transformers_server.py
var TransformersServer []byte
