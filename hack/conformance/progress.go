// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
)

// ended is the line with which ginkgo ends a spec; its name is on the next one.
var ended = regexp.MustCompile(`^(•|S|P) *(?:\[([A-Z ]+)\] )?\[(\d+\.\d+) seconds\]$`)

// decoration is what ginkgo adds to a name: the kind of the node that failed, the labels again.
var decoration = regexp.MustCompile(`\[(It|BeforeEach|AfterEach|DeferCleanup \(Each\))\] | \[[^]]*, [^]]*\]$`)

// progressWriter writes everything to a log, and a line for each spec that ended to out.
type progressWriter struct {
	log, out io.Writer
	line     []byte
	state    string
	count    int
}

// Write implements io.Writer.
func (w *progressWriter) Write(b []byte) (int, error) {
	n, err := w.log.Write(b)
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			const limit = 64 << 10 // of a line that is only looked at
			if len(w.line) < limit {
				w.line = append(w.line, b...)
			}
			break
		}
		w.line = append(w.line, b[:i]...)
		w.look(string(w.line))
		w.line, b = w.line[:0], b[i+1:]
	}
	return n, err
}

func (w *progressWriter) look(line string) {
	if w.state != "" {
		w.count++
		fmt.Fprintf(w.out, "%4d %s %s\n", w.count, w.state, decoration.ReplaceAllString(line, ""))
		w.state = ""
		return
	}
	m := ended.FindStringSubmatch(line)
	if m == nil {
		return
	}
	state := "passed"
	switch {
	case m[2] != "":
		state = m[2]
	case m[1] != "•":
		state = "skipped"
	}
	w.state = fmt.Sprintf("%-8s %6ss", state, m[3])
}
