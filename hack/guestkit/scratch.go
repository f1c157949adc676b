// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// The identity of every scratch disk: no machine sees another's, and equal inputs
// shall give equal bytes.
const (
	scratchUUID     = "6669726b-696e-4000-8000-736372617463"
	scratchHashSeed = "6669726b-696e-4000-8000-68617368736d"
)

// scratchFeatures is the whole list, so that it does not depend on the defaults of a
// version of mkfs. There is no journal, since a scratch disk never outlives its machine's
// memory; no checksums, since emulated guests pay for them; no resize inode.
const scratchFeatures = "none,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,sparse_super"

// writeScratch makes the empty file system of a scratch disk. Discarding a new file costs
// nothing and tells mkfs that it reads as zeros, so the inode tables stay holes; without
// group checksums the guest has none of them to zero in the background either.
func writeScratch(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = f.Truncate(kit.ScratchBytes)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	config := filepath.Join(filepath.Dir(filepath.Dir(path)), "mke2fs.conf")
	if err := os.WriteFile(config, []byte("[defaults]\n\tbase_features = none\n\tblocksize = 4096\n\tinode_size = 256\n\tinode_ratio = 16384\n"), 0o644); err != nil {
		return err
	}
	env := []string{"MKE2FS_CONFIG=" + config, "SOURCE_DATE_EPOCH=1", "E2FSPROGS_FAKE_TIME=1", "TZ=UTC", "LC_ALL=C"}
	err = run(ctx, env, "mkfs.ext4", "-q", "-F", "-t", "ext4",
		"-O", scratchFeatures, "-b", "4096", "-I", "256", "-m", "0", "-e", "continue",
		"-U", scratchUUID,
		"-E", "hash_seed="+scratchHashSeed+",root_owner=0:0,discard,packed_meta_blocks=1",
		path)
	if err != nil {
		return fmt.Errorf("make scratch disk: %w", err)
	}
	return nil
}
