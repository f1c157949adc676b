// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// MaxRecordBytes bounds the JSON files of machines and snapshots: paths and
// numbers, a few KiB.
const MaxRecordBytes = 1 << 20

// WriteJSON replaces dir/name in one step, and it survives a crash of the host: it
// announces what the caller is about to make.
func WriteJSON(fsys durable.FS, dir, name string, v any) error {
	return write(fsys, dir, name, v, durable.Replace, durable.Synced)
}

// NoteJSON is WriteJSON of what the caller has seen of a machine. It survives the caller
// and is not synced: no machine survives what a sync protects from, and who finds half a
// record then finds a machine that was never made, or that has ended.
func NoteJSON(fsys durable.FS, dir, name string, v any) error {
	return write(fsys, dir, name, v, durable.Replace, durable.Unsynced)
}

// WriteJSONOnce is NoteJSON unless the file is there: of several processes that write it,
// one does. The others get fs.ErrExist, and what they meant to write is nowhere.
func WriteJSONOnce(fsys durable.FS, dir, name string, v any) error {
	return write(fsys, dir, name, v, durable.Publish, durable.Unsynced)
}

func write(fsys durable.FS, dir, name string, v any, put func(durable.FS, string, []byte, durable.Durability) error, how durable.Durability) error {
	data, err := EncodeJSON(v)
	if err == nil {
		err = put(fsys, filepath.Join(dir, name), data, how)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, NoSpace(err))
	}
	return nil
}

// EncodeJSON is v as WriteJSON writes it.
func EncodeJSON(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	return append(data, '\n'), err
}

// ReadVersioned is ReadJSON of a record that says its version. Errors: fs.ErrNotExist,
// durable.ErrCorrupt, vm.ErrUnreadable when another vk-firkin wrote it, and vm.ErrUnavailable
// when the disk did not say.
func ReadVersioned(fsys durable.FS, dir, name string, version int, v any) error {
	data, err := ReadRecord(fsys, dir, name)
	if err == nil {
		// The version first: the rest of another one need not be understood.
		var head durable.Header
		err := json.Unmarshal(data, &head)
		if err == nil && head.Version < 1 {
			err = fmt.Errorf("version %d", head.Version)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %w", name, durable.ErrCorrupt, err)
		}
		if head.Version != version {
			return fmt.Errorf("%w: %s: %w", vm.ErrUnreadable, name, &durable.VersionError{Kind: "machine", Version: head.Version, Oldest: version, Newest: version})
		}
		if err := json.Unmarshal(data, v); err != nil {
			return fmt.Errorf("%s: %w: %w", name, durable.ErrCorrupt, err)
		}
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, durable.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
}

// ReadJSON reads a file of at most MaxRecordBytes into v.
func ReadJSON(fsys durable.FS, dir, name string, v any) error {
	data, err := ReadRecord(fsys, dir, name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w: %w", name, durable.ErrCorrupt, err)
	}
	return nil
}

// ReadRecord reads a regular file of at most MaxRecordBytes. What is longer, or no file, is
// durable.ErrCorrupt.
func ReadRecord(fsys durable.FS, dir, name string) ([]byte, error) {
	return durable.ReadFile(fsys, filepath.Join(dir, name), MaxRecordBytes)
}

// NoSpace adds vm.ErrNoSpace to errors that mean it.
func NoSpace(err error) error {
	if durable.IsNoSpace(err) || errors.Is(err, syscall.ENOMEM) {
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
