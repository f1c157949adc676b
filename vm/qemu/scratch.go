// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

// Geometry of the overlay's file. Clusters of 64 KiB are QEMU's own default.
const (
	qcow2ClusterBits  = 16
	qcow2ClusterBytes = 1 << qcow2ClusterBits
	// One level-1 entry covers a level-2 table of 8-byte entries, one per cluster.
	qcow2BytesPerL1 = qcow2ClusterBytes / 8 * qcow2ClusterBytes
)

// qcow2Header is the fixed part of a version 3 header, from QEMU's docs/interop/qcow2.txt.
type qcow2Header struct {
	Magic                 uint32
	Version               uint32
	BackingFileOffset     uint64
	BackingFileSize       uint32
	ClusterBits           uint32
	Size                  uint64
	CryptMethod           uint32
	L1Size                uint32
	L1TableOffset         uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	NbSnapshots           uint32
	SnapshotsOffset       uint64
	IncompatibleFeatures  uint64
	CompatibleFeatures    uint64
	AutoclearFeatures     uint64
	RefcountOrder         uint32
	HeaderLength          uint32
}

// writeOverlay creates an empty qcow2 image of size bytes at path. What it lies
// over is said on QEMU's command line, so the file names no other file and can be
// moved. It is four clusters: header, reference table, reference block, level-1
// table; written here because starting qemu-img costs as much as a restore.
func writeOverlay(path string, size int64) (err error) {
	const (
		tableAt = 1 * qcow2ClusterBytes
		blockAt = 2 * qcow2ClusterBytes
		l1At    = 3 * qcow2ClusterBytes
		end     = 4 * qcow2ClusterBytes
	)
	l1 := (size + qcow2BytesPerL1 - 1) / qcow2BytesPerL1
	if size <= 0 || size%512 != 0 || l1*8 > qcow2ClusterBytes {
		return fmt.Errorf("write scratch overlay: unusable size %d", size)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write scratch overlay: %w", machinedir.NoSpace(err))
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("write scratch overlay: %w", machinedir.NoSpace(cerr))
		}
	}()
	header, err := binary.Append(nil, binary.BigEndian, qcow2Header{
		Magic:                 0x514649fb, // "QFI\xfb"
		Version:               3,
		ClusterBits:           qcow2ClusterBits,
		Size:                  uint64(size),
		L1Size:                uint32(l1),
		L1TableOffset:         l1At,
		RefcountTableOffset:   tableAt,
		RefcountTableClusters: 1,
		RefcountOrder:         4, // 16-bit reference counts
		HeaderLength:          104,
	})
	if err != nil {
		return fmt.Errorf("write scratch overlay: %w", err)
	}
	for _, part := range []struct {
		at   int64
		data []byte
	}{
		{0, header},
		{tableAt, binary.BigEndian.AppendUint64(nil, blockAt)},
		{blockAt, []byte{0, 1, 0, 1, 0, 1, 0, 1}}, // the four clusters are in use once
	} {
		if _, err := f.WriteAt(part.data, part.at); err != nil {
			return fmt.Errorf("write scratch overlay: %w", machinedir.NoSpace(err))
		}
	}
	if err := f.Truncate(end); err != nil {
		return fmt.Errorf("write scratch overlay: %w", machinedir.NoSpace(err))
	}
	return nil
}
