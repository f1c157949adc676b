// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/pflag"
)

// logFileOptions say where a node logs that has no journal to log to.
type logFileOptions struct {
	LogFile    string
	LogMaxSize string
	LogFiles   int
}

func (l *logFileOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&l.LogFile, "log-file", "", "file to log to, rotated (default: standard error)")
	flags.StringVar(&l.LogMaxSize, "log-max-size", "20Mi", "with --log-file: size at which a new file is begun")
	flags.IntVar(&l.LogFiles, "log-max-files", 5, "with --log-file: how many files there are at most")
}

func (l *logFileOptions) validate() (maxBytes int64, err error) {
	var errs []error
	if l.LogFile != "" && !filepath.IsAbs(l.LogFile) {
		errs = append(errs, fmt.Errorf("--log-file %q: want an absolute path", l.LogFile))
	}
	maxBytes, err = parseBytes("--log-max-size", l.LogMaxSize)
	if err == nil && maxBytes < 64<<10 {
		err = fmt.Errorf("--log-max-size %s: want at least 64Ki", l.LogMaxSize)
	}
	if l.LogFiles < 1 || l.LogFiles > 100 {
		errs = append(errs, fmt.Errorf("--log-max-files %d: want 1 to 100", l.LogFiles))
	}
	return maxBytes, errors.Join(append(errs, err)...)
}

// rotatingFile is a log of at most files files: path, and path.1 to path.N, the oldest.
// Safe for concurrent use.
type rotatingFile struct {
	path     string
	maxBytes int64
	files    int

	mu   sync.Mutex
	file *os.File // guarded by mu
	size int64    // guarded by mu
}

// openRotating goes on with the log at path. Logs name pods and commands: they are
// readable by their owner alone.
func openRotating(path string, maxBytes int64, files int) (*rotatingFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of --log-file: %w", err)
	}
	r := &rotatingFile{path: path, maxBytes: maxBytes, files: files}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *rotatingFile) open() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open --log-file: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.file, r.size = f, info.Size()
	return nil
}

// Write appends p, to a new file when the current one would become too large.
func (r *rotatingFile) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return 0, fs.ErrClosed
	}
	if r.size > 0 && r.size+int64(len(p)) > r.maxBytes {
		r.rotate()
	}
	n, err := r.file.Write(p)
	r.size += int64(n)
	return n, err
}

// rotate begins a new file. When that fails, the old one goes on for as much again: a log
// that is too large is better than none.
func (r *rotatingFile) rotate() {
	old := r.file
	r.size = 0
	for i := r.files - 1; i > 0; i-- {
		from := fmt.Sprintf("%s.%d", r.path, i-1)
		if i == 1 {
			from = r.path
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", r.path, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
	if r.files == 1 {
		_ = os.Remove(r.path) // else it is appended to
	}
	if err := r.open(); err != nil {
		r.file = old
		return
	}
	_ = old.Close() // what was written is written
}

// Close ends the log.
func (r *rotatingFile) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.file
	r.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// maxCrashBytes bounds the file that standard error may be: launchd appends to it what a
// crash says, and nobody rotates it.
const maxCrashBytes = 1 << 20

// trimStandardError empties a file behind standard error that has become too large.
func trimStandardError(f *os.File) error {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() <= maxCrashBytes {
		return err
	}
	return f.Truncate(0)
}
