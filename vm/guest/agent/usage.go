// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// maxUsageWalk bounds the files that are counted of one volume: what one has beyond is
// not seen, and a count of a hundred thousand takes a small guest about a second.
const maxUsageWalk = 100_000

// maxUsageSteps bounds the directories that are opened on the way to what is counted: to
// open one costs as many steps as it is deep, and a container may nest them as it likes.
const maxUsageSteps = 3 * maxUsageWalk

// stats measures every volume, in the order of their names. It ends early when nobody waits
// for it any more: those who gave up ask again soon.
func (vs *volumes) stats(ctx context.Context) []*agentv1.VolumeStats {
	vs.mu.Lock()
	dirs := make(map[string]string, len(vs.table))
	for name, v := range vs.table {
		dirs[name] = v.dir
	}
	vs.mu.Unlock()
	out := make([]*agentv1.VolumeStats, 0, len(dirs))
	for name, dir := range dirs {
		if ctx.Err() != nil {
			break
		}
		bytes, inodes := DiskUsage(dir, maxUsageWalk)
		out = append(out, &agentv1.VolumeStats{Name: name, UsedBytes: bytes, InodesUsed: inodes})
	}
	slices.SortFunc(out, func(a, b *agentv1.VolumeStats) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out
}

// DiskUsage is what the files below dir allocate, and how many there are, the directory itself
// left out, as far as most of them tell. A file of several names counts once, as for du. A
// container may change whatever is below dir meanwhile.
func DiskUsage(dir string, most int64) (bytes, inodes int64) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, 0 // it was removed meanwhile
	}
	defer func() { _ = root.Close() }()
	linked := map[uint64]bool{}
	steps := 0
	// Not fs.WalkDir, which does not enter a directory whose name is no UTF-8.
	for dirs := []string{"."}; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		if steps += 1 + strings.Count(dir, "/"); steps > maxUsageSteps {
			return bytes, inodes
		}
		d, err := openDirectory(root, dir)
		if err != nil {
			continue // it was deleted meanwhile
		}
		for {
			entries, err := d.ReadDir(usageBatch)
			for _, e := range entries {
				if inodes >= most {
					_ = d.Close()
					return bytes, inodes
				}
				info, err := e.Info()
				if err != nil {
					continue // it was deleted meanwhile
				}
				if e.IsDir() {
					dirs = append(dirs, filepath.Join(dir, e.Name()))
				}
				st, ok := info.Sys().(*syscall.Stat_t)
				if !ok || linked[st.Ino] {
					continue
				}
				if st.Nlink > 1 && !e.IsDir() {
					linked[st.Ino] = true
				}
				bytes += st.Blocks * 512
				inodes++
			}
			if err != nil || len(entries) == 0 {
				break
			}
		}
		_ = d.Close()
	}
	return bytes, inodes
}

// openDirectory opens a directory and nothing else: what has its name by now may be a pipe,
// which would block, or a device.
func openDirectory(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(name, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
}

// usageBatch is how many entries of a directory are read at once: a container may have made
// any number.
const usageBatch = 512
