// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Header is embedded, as the first field, in every type that is a record.
type Header struct {
	// Kind of a record. Records of version 1 may be without, there were no kinds then.
	Kind    string `json:"kind,omitempty"`
	Version int    `json:"version"`
}

func (h *Header) header() *Header { return h }

// headed is a pointer to a type that embeds Header.
type headed[T any] interface {
	*T
	header() *Header
}

// FormatOptions describe how one kind of record is written.
type FormatOptions[T any] struct {
	// Kind names the kind in each record.
	Kind string
	// Version is what is written. It changes when a reader of the former one would
	// misunderstand a record, also by ignoring a part of it.
	Version int
	// Unversioned is the version of a record that does not say it. 0: it must.
	Unversioned int
	// MaxBytes bounds a record. Default: 1 MiB.
	MaxBytes int64
	// Lenient ignores fields that are not known. It is for records with parts that are
	// somebody else's, such as a pod.
	Lenient bool
	// Indent writes it for people to read.
	Indent bool
	// Upgrades turn a record of the version that is their key into one of the next.
	Upgrades map[int]func(old []byte) ([]byte, error)
	// Check tells what is wrong with a record that could be decoded; nil when nothing
	// can be.
	Check func(*T) error
}

// Format reads and writes records of one kind. Safe for concurrent use.
type Format[T any] struct {
	opts FormatOptions[T]
	head func(*T) *Header
}

// NewFormat makes a format.
func NewFormat[T any, P headed[T]](opts FormatOptions[T]) *Format[T] {
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 1 << 20
	}
	return &Format[T]{opts: opts, head: func(v *T) *Header { return P(v).header() }}
}

// Encode returns a record as it is on disk. One that could not be read back is an error.
func (f *Format[T]) Encode(v T) ([]byte, error) {
	*f.head(&v) = Header{Kind: f.opts.Kind, Version: f.opts.Version}
	if f.opts.Check != nil {
		if err := f.opts.Check(&v); err != nil {
			return nil, fmt.Errorf("encode %s record: %w", f.opts.Kind, err)
		}
	}
	data, err := json.Marshal(v)
	if err == nil && f.opts.Indent {
		var b bytes.Buffer
		err = json.Indent(&b, data, "", "  ")
		data = append(b.Bytes(), '\n')
	}
	if err != nil {
		return nil, fmt.Errorf("encode %s record: %w", f.opts.Kind, err)
	}
	if int64(len(data)) > f.opts.MaxBytes {
		return nil, fmt.Errorf("encode %s record: %d bytes, at most %d can be read", f.opts.Kind, len(data), f.opts.MaxBytes)
	}
	return data, nil
}

// Decode reads a record. The error is ErrCorrupt, ErrNewer or ErrOlder. Pure.
func (f *Format[T]) Decode(data []byte) (T, error) {
	var v T
	if int64(len(data)) > f.opts.MaxBytes {
		return v, fmt.Errorf("%w: more than %d bytes", ErrCorrupt, f.opts.MaxBytes)
	}
	// The header first: the rest of another version need not be understood.
	var h Header
	if err := json.Unmarshal(data, &h); err != nil {
		return v, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if h.Version == 0 {
		h.Version = f.opts.Unversioned
	}
	switch {
	case h.Kind != "" && h.Kind != f.opts.Kind:
		return v, fmt.Errorf("%w: a record of kind %.64q, want %q", ErrCorrupt, h.Kind, f.opts.Kind)
	case h.Version < 1:
		return v, fmt.Errorf("%w: version %d", ErrCorrupt, h.Version)
	case h.Version > f.opts.Version:
		return v, f.otherVersion(h.Version)
	case h.Kind == "" && h.Version > 1:
		return v, fmt.Errorf("%w: it does not say its kind, want %q", ErrCorrupt, f.opts.Kind)
	}
	for version := h.Version; version < f.opts.Version; version++ {
		upgrade := f.opts.Upgrades[version]
		if upgrade == nil {
			return v, f.otherVersion(h.Version)
		}
		var err error
		if data, err = upgrade(data); err != nil {
			return v, fmt.Errorf("%w: bring version %d to %d: %w", ErrCorrupt, version, version+1, err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if !f.opts.Lenient {
		dec.DisallowUnknownFields()
	}
	if err := dec.Decode(&v); err != nil {
		return *new(T), fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	*f.head(&v) = Header{Kind: f.opts.Kind, Version: f.opts.Version}
	if f.opts.Check != nil {
		if err := f.opts.Check(&v); err != nil {
			return *new(T), fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	return v, nil
}

// otherVersion is the error of a version that cannot be read.
func (f *Format[T]) otherVersion(version int) error {
	oldest := f.opts.Version
	for oldest > 1 && f.opts.Upgrades[oldest-1] != nil {
		oldest--
	}
	return &VersionError{Kind: f.opts.Kind, Version: version, Oldest: oldest, Newest: f.opts.Version}
}

// Read reads the record at path. The errors are those of Decode, fs.ErrNotExist, and the
// disk's.
func (f *Format[T]) Read(fsys FS, path string) (T, error) {
	data, err := ReadFile(fsys, path, f.opts.MaxBytes)
	if err != nil {
		return *new(T), err
	}
	v, err := f.Decode(data)
	if err != nil {
		return v, fmt.Errorf("read %s: %w", path, err)
	}
	return v, nil
}

// Write puts a record in the place of the one at path, whole or not at all: see Replace.
func (f *Format[T]) Write(fsys FS, path string, v T, how Durability) error {
	data, err := f.Encode(v)
	if err != nil {
		return err
	}
	return Replace(fsys, path, data, how)
}

// Unusable tells whether reading again cannot help: the record is there, and nobody here
// can use it.
func Unusable(err error) bool {
	return slices.ContainsFunc([]error{ErrCorrupt, ErrNewer, ErrOlder}, func(kind error) bool { return errors.Is(err, kind) })
}
