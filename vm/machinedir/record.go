// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm"
)

// MaxRecordBytes bounds the JSON files of machines and snapshots: paths and
// numbers, a few KiB.
const MaxRecordBytes = 1 << 20

// WriteJSON replaces dir/name in one step. It does not sync: a record describes
// processes, which do not outlive a crash of the host either.
func WriteJSON(dir, name string, v any) error {
	data, err := EncodeJSON(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	temp := filepath.Join(dir, "."+name+".new")
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, NoSpace(err))
	}
	if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("write %s: %w", name, NoSpace(err))
	}
	return nil
}

// WriteJSONOnce makes dir/name in one step unless it is there: of several processes that
// write it, one does. The others get fs.ErrExist, and what they meant to write is nowhere.
func WriteJSONOnce(dir, name string, v any) error {
	if err := writeOnce(dir, name, v); err != nil {
		return fmt.Errorf("write %s: %w", name, NoSpace(err))
	}
	return nil
}

func writeOnce(dir, name string, v any) error {
	data, err := EncodeJSON(v)
	if err != nil {
		return err
	}
	// A name of its own: another writer's half must not be what is published.
	temp, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(data)
	if err := errors.Join(err, temp.Close()); err != nil {
		return err
	}
	return os.Link(temp.Name(), filepath.Join(dir, name))
}

// EncodeJSON is v as WriteJSON writes it.
func EncodeJSON(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	return append(data, '\n'), err
}

// ReadJSON reads a file of at most MaxRecordBytes into v.
func ReadJSON(dir, name string, v any) error {
	data, err := ReadRecord(dir, name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// ReadRecord reads a file of at most MaxRecordBytes.
func ReadRecord(dir, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxRecordBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxRecordBytes {
		return nil, fmt.Errorf("%s has more than %d bytes", name, MaxRecordBytes)
	}
	return data, nil
}

// NoSpace adds vm.ErrNoSpace to errors that mean it.
func NoSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.ENOMEM) {
		return fmt.Errorf("%w: %w", vm.ErrNoSpace, err)
	}
	return err
}

// ReadTail reads the last limit bytes of a file; a file that is not there is empty.
func ReadTail(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.NewSectionReader(f, info.Size()-min(info.Size(), limit), limit))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return text, nil
}
