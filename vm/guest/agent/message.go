// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// maxTerminationMessage is what the kubelet keeps of a container's last words
// (k8s.io/api/core/v1, Container.terminationMessagePath: 4096 bytes, the end of longer ones).
const maxTerminationMessage = 4 << 10

// lastWords is the file that a container leaves its last words in: on the scratch disk,
// mounted into the container. The zero value is none.
type lastWords struct{ file string }

// newLastWords makes an empty file that anyone may write, whoever the container runs as.
func newLastWords(file string) (lastWords, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o711); err != nil {
		return lastWords{}, err
	}
	// What an agent before this one left behind is not this container's.
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return lastWords{}, err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return lastWords{}, err
	}
	// Not by the mode above, which the umask narrows.
	err = errors.Join(f.Chmod(0o666), f.Close())
	if err != nil {
		return lastWords{}, errors.Join(err, os.Remove(file))
	}
	return lastWords{file: file}, nil
}

// read returns the end of the file. The container may have put anything in its place where
// it shares its files with the machine: links are not followed, and a pipe would block.
func (w lastWords) read() ([]byte, error) {
	if w.file == "" {
		return nil, nil
	}
	f, err := os.OpenFile(w.file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file any more", filepath.Base(w.file))
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-maxTerminationMessage), maxTerminationMessage))
}

// remove deletes the file. Idempotent.
func (w lastWords) remove() error {
	if w.file == "" {
		return nil
	}
	if err := os.RemoveAll(w.file); err != nil {
		return fmt.Errorf("remove the termination message: %w", err)
	}
	return nil
}

// checkTarget checks a path in the container that something is mounted on.
func checkTarget(field, target string) error {
	if !path.IsAbs(target) || path.Clean(target) == "/" || strings.ContainsRune(target, 0) || len(target) > maxPathBytes {
		return fmt.Errorf("%s is %.128q, want an absolute path below the root of at most %d bytes", field, target, maxPathBytes)
	}
	return nil
}
