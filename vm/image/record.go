// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// formatVersion of image.json, of the reference files, and of the disk's layout.
// An entry of another version is as good as absent: it can be pulled again.
const formatVersion = 1

// Bounds of our own files, in case they are not ours any more.
const (
	maxRecordBytes    = 4 * maxConfigBytes // JSON escapes may lengthen the configuration
	maxRefRecordBytes = 8 << 10
)

// record is image.json.
type record struct {
	durable.Header
	Digest       string `json:"digest"`
	ConfigDigest string `json:"configDigest"`
	Architecture string `json:"architecture"`
	SlotBytes    int64  `json:"slotBytes"`
	// SizeBytes of the disk have content; the rest is holes.
	SizeBytes int64     `json:"sizeBytes"`
	Created   time.Time `json:"created"`
	Config    Config    `json:"config"`
	// MacOS is there for an installation of macOS, which has neither a slot nor a Config.
	MacOS *macOSRecord `json:"macos,omitempty"`
}

// files are the image's files beside its record, and their lengths.
func (r record) files() map[string]int64 {
	if r.MacOS != nil {
		return map[string]int64{macOSDiskName: r.MacOS.DiskBytes, macOSAuxiliaryName: r.MacOS.AuxiliaryBytes}
	}
	return map[string]int64{diskName: r.SlotBytes}
}

var recordFormat = durable.NewFormat(durable.FormatOptions[record]{
	Kind: "image", Version: formatVersion, MaxBytes: maxRecordBytes, Check: (*record).check,
})

func (r *record) check() error {
	var errs []error
	if !validDigest(r.Digest) || !validDigest(r.ConfigDigest) {
		errs = append(errs, errors.New("digests are not sha256"))
	}
	if r.MacOS != nil {
		errs = append(errs, r.MacOS.check())
		if r.SlotBytes != 0 || r.SizeBytes < 0 || r.SizeBytes > r.MacOS.DiskBytes+r.MacOS.AuxiliaryBytes {
			errs = append(errs, fmt.Errorf("%d bytes of a macOS installation, in a slot of %d", r.SizeBytes, r.SlotBytes))
		}
	} else if r.SlotBytes <= 0 || r.SizeBytes < 0 || r.SizeBytes > r.SlotBytes {
		errs = append(errs, fmt.Errorf("%d bytes in a slot of %d", r.SizeBytes, r.SlotBytes))
	}
	if r.Architecture == "" {
		errs = append(errs, errors.New("no architecture"))
	}
	errs = append(errs, r.Config.check())
	return errors.Join(errs...)
}

// refRecord says what a reference was resolved to.
type refRecord struct {
	durable.Header
	// Ref is the full name of the reference.
	Ref string `json:"ref"`
	// Architecture is whose manifest Digest is.
	Architecture string `json:"architecture"`
	// Target is what the registry had under Ref: an index or a manifest.
	Target string `json:"target"`
	// Digest is the manifest for the architecture, the key of the image.
	Digest string `json:"digest"`
}

var refFormat = durable.NewFormat(durable.FormatOptions[refRecord]{
	Kind: "image-reference", Version: formatVersion, MaxBytes: maxRefRecordBytes, Check: (*refRecord).check,
})

func (r *refRecord) check() error {
	switch {
	case r.Ref == "" || len(r.Ref) > maxReferenceBytes || r.Architecture == "":
		return errors.New("no reference or no architecture")
	case !validDigest(r.Target) || !validDigest(r.Digest):
		return errors.New("digests are not sha256")
	}
	return nil
}

// same tells whether both say the same, whoever wrote them.
func (r refRecord) same(other refRecord) bool {
	r.Header = other.Header
	return r == other
}

func decodeStrict(b []byte, limit int, into any) error {
	if len(b) > limit {
		return fmt.Errorf("%d bytes, want at most %d", len(b), limit)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more after the end")
	}
	return nil
}
