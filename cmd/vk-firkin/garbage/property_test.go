// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package garbage

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// node is a world in which things happen at random, and what is known about each thing
// without looking at what the collector looks at.
type node struct {
	*world
	// pods have a record; of each the digests and machines that it names.
	pods map[string]podOf
	// machines exist in the driver, by id; the snapshot that each came from.
	machines map[string]string
	warm     map[string]bool // machines with a warm record
	pins     map[string]*snapshot.Ref
	owners   map[string]string    // digests that are pinned, by owner
	used     map[string]time.Time // of snapshots by key, and images by digest
	changed  map[string]time.Time // of directories and records by path
	made     int

	went, kept map[string]int // things, by their first word
}

type podOf struct{ digest, machine string }

// TestRandomCollections drives random pods, machines, records, snapshots, images and logs
// with random references, collects at random times, and checks after each collection that
// nothing that is referred to has gone, and that everything else has that was unused for
// longer than the grace period.
func TestRandomCollections(t *testing.T) {
	const steps = 90
	went, kept := map[string]int{}, map[string]int{}
	for _, seed := range []uint64{1, uint64(time.Now().UnixNano())} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			n := &node{
				world: newWorld(t, seed), pods: map[string]podOf{}, machines: map[string]string{}, warm: map[string]bool{},
				pins: map[string]*snapshot.Ref{}, owners: map[string]string{}, used: map[string]time.Time{}, changed: map[string]time.Time{},
				went: went, kept: kept,
			}
			acts := []func(){n.makePod, n.makePod, n.endPod, n.endPod, n.makeMachine, n.makeMachine, n.endMachine, n.loseMachine, n.useSnapshot, n.unpin, n.pullImage, n.dropImage, n.quarantine, n.leave, n.leave, n.want}
			collections := 0
			for range steps {
				n.now = n.now.Add(time.Duration(n.random.IntN(90)) * time.Minute)
				if n.random.IntN(6) > 0 {
					pick(n.random, acts)()
					continue
				}
				collections++
				n.collect()
				if t.Failed() {
					return
				}
			}
			for owner := range n.owners {
				n.images.Unpin(n.owners[owner], owner)
			}
			for _, r := range n.pins {
				r.Release()
			}
			t.Logf("%d collections in %d steps: went until now %v, were needed %v", collections, steps, went, kept)
		})
	}
	for _, kind := range []Kind{KindPod, KindRecord, KindMachine, KindSnapshot, KindImage} {
		if went[string(kind)] == 0 || kept[string(kind)] == 0 {
			t.Errorf("of kind %s nothing went, or nothing was needed: the test proves nothing", kind)
		}
	}
}

// some is one key of a map, or none; the same with the same seed.
func some[V any](r *rand.Rand, m map[string]V) []string {
	keys := slices.Sorted(maps.Keys(m))
	if len(keys) == 0 {
		return nil
	}
	return []string{pick(r, keys)}
}

func (n *node) id(prefix string) string {
	n.made++
	return fmt.Sprintf("%s-%d", prefix, n.made)
}

// put writes a file and remembers when that was.
func (n *node) put(root, path, text string) {
	n.write(path, text)
	n.changed[root] = n.now
}

// pull gets an image and lets it go again.
func (n *node) pull() *image.Image {
	img, err := n.images.Pull(n.t.Context(), pick(n.random, n.refs), image.PullOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	n.used[img.Digest] = n.now
	return img
}

func (n *node) makePod() {
	uid := n.id("uid")
	img := n.pull()
	img.Release() // a node that was restarted has not pinned it yet; its record is all
	p := podOf{digest: img.Digest}
	if ids := n.names(machinesDir); len(ids) > 0 && n.random.IntN(2) == 0 {
		p.machine = pick(n.random, ids)
	}
	n.pods[uid] = p
	n.put(filepath.Join(podsDir, uid), filepath.Join(podsDir, uid, podRecord), fmt.Sprintf(`{"images":[%q],"machine":{"id":%q}}`, p.digest, p.machine))
	n.put(filepath.Join(podsDir, uid), filepath.Join(podsDir, uid, "logs", "main", "0.log"), "a line\n")
}

// endPod takes a pod's record, and half of the time the rest of its directory.
func (n *node) endPod() {
	for _, uid := range some(n.random, n.pods) {
		delete(n.pods, uid)
		dir := filepath.Join(n.state, podsDir, uid)
		if err := os.Remove(filepath.Join(dir, podRecord)); err != nil {
			n.t.Fatal(err)
		}
		n.stamp(dir)
		n.changed[filepath.Join(podsDir, uid)] = n.now
		if n.random.IntN(2) == 0 {
			if err := os.RemoveAll(dir); err != nil {
				n.t.Fatal(err)
			}
		}
	}
}

// ensure builds or uses a snapshot, of a base or of a template of an image.
func (n *node) ensure() *snapshot.Ref {
	var img *image.Image
	if n.random.IntN(2) == 0 {
		img = n.pull()
		defer img.Release()
	}
	ref, built, err := n.snapshots.Ensure(n.t.Context(), n.spec(n.random.IntN(2), img))
	if err != nil {
		n.t.Fatal(err)
	}
	if built {
		n.touch(ref.Key())
		if img != nil { // it was built from a base
			n.touch(snapshot.Key(n.spec(ref.Manifest().Shape.VCPUs-1, nil), n.driver.Features()))
		}
	}
	return ref
}

// touch gives a snapshot's files the world's time.
func (n *node) touch(key string) {
	dir := filepath.Join(n.state, "snapshots")
	n.stamp(filepath.Join(dir, key), filepath.Join(dir, ".refs", key))
	n.used[key] = n.now
}

func (n *node) useSnapshot() {
	ref := n.ensure()
	if n.random.IntN(2) == 0 && n.pins[ref.Key()] == nil {
		n.pins[ref.Key()] = ref
		return
	}
	ref.Release()
}

func (n *node) unpin() {
	for _, key := range some(n.random, n.pins) {
		n.pins[key].Release()
		delete(n.pins, key)
	}
}

// makeMachine restores a machine, for the ledger or for the pool.
func (n *node) makeMachine() {
	ref := n.ensure()
	defer ref.Release()
	id := n.id("m")
	m := ref.Manifest()
	cfg := vm.Config{Shape: m.Shape, Kit: n.spec(0, nil).Kit}
	if m.Template != nil {
		cfg.Images = []string{filepath.Join(n.state, "images", strings.TrimPrefix(m.Template.Images[0].Digest, "sha256:"), "disk.ext4")}
	}
	running, err := n.snapshots.Restore(n.t.Context(), ref, id, cfg, snapshot.RestoreOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	_ = running.Guest.Close()
	n.touch(ref.Key())
	n.machines[id] = ref.Key()
	n.put(filepath.Join(machinesDir, id), filepath.Join(machinesDir, id, "machine.json"), fmt.Sprintf(`{"images":%q}`, cfg.Images))
	if n.random.IntN(2) == 0 {
		n.accounted = append(n.accounted, id)
		return
	}
	n.warm[id] = true
	n.put(filepath.Join(warmDir, id+recordSuffix), filepath.Join(warmDir, id+recordSuffix), fmt.Sprintf(`{"machine":%q}`, id))
}

// endMachine deletes a machine, as far as the driver and the store know of it; what is on
// the disk goes, or stays when the node dies there.
func (n *node) endMachine() {
	for _, id := range some(n.random, n.machines) {
		key := n.machines[id]
		m := n.driver.Machine(id)
		if err := errors.Join(m.Delete(n.t.Context()), n.snapshots.Forget(id)); err != nil {
			n.t.Fatal(err)
		}
		n.touch(key)
		delete(n.machines, id)
		n.accounted = slices.DeleteFunc(n.accounted, func(a string) bool { return a == id })
		if n.random.IntN(2) == 0 {
			if err := os.RemoveAll(filepath.Join(n.state, machinesDir, id)); err != nil {
				n.t.Fatal(err)
			}
		}
	}
}

// loseMachine takes a machine's warm record away.
func (n *node) loseMachine() {
	for _, id := range some(n.random, n.warm) {
		delete(n.warm, id)
		if err := os.Remove(filepath.Join(n.state, warmDir, id+recordSuffix)); err != nil && !os.IsNotExist(err) {
			n.t.Fatal(err)
		}
	}
}

func (n *node) pullImage() {
	img := n.pull()
	owner := n.id("owner")
	if _, err := n.images.Pin(img.Digest, owner); err != nil {
		n.t.Fatal(err)
	}
	n.owners[owner] = img.Digest
	img.Release()
}

func (n *node) dropImage() {
	for _, owner := range some(n.random, n.owners) {
		digest := n.owners[owner]
		n.images.Unpin(digest, owner)
		if !n.pinned(digest, owner) {
			n.used[digest] = n.now
		}
		delete(n.owners, owner)
	}
}

func (n *node) pinned(digest, but string) bool {
	for owner, d := range n.owners {
		if d == digest && owner != but {
			return true
		}
	}
	return false
}

func (n *node) quarantine() {
	for _, name := range n.names("snapshots") {
		if len(name) == 64 && n.random.IntN(3) == 0 {
			if err := n.snapshots.Quarantine(n.t.Context(), name, "test"); err != nil {
				n.t.Fatal(err)
			}
			return
		}
	}
}

// leave leaves what a process that died in the middle of something leaves.
func (n *node) leave() {
	name := n.id(".removing")
	n.write(filepath.Join("snapshots", name, "file"), "x")
	n.write(filepath.Join("images", n.id(".trash"), "file"), "x")
	record := filepath.Join(warmDir, n.id("never-made")+recordSuffix)
	n.put(record, record, "{}")
}

func (n *node) want() {
	n.wanted = nil
	for _, name := range n.names("snapshots") {
		if len(name) == 64 && n.random.IntN(3) == 0 {
			n.wanted = append(n.wanted, name)
		}
	}
	n.complete = n.random.IntN(4) > 0
}

// collect collects and checks.
func (n *node) collect() {
	t := n.t
	opts := Options{Grace: time.Duration(n.random.IntN(5)) * time.Hour}
	before, err := n.snapshots.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	present, err := n.images.List()
	if err != nil {
		t.Fatal(err)
	}
	pods, records, machines := n.names(podsDir), n.names(warmDir), n.names(machinesDir)
	// What the records name at this moment.
	named := map[string]bool{}
	digests := map[string]bool{}
	for _, p := range n.pods {
		named[p.machine], digests[p.digest] = true, true
	}
	for id := range n.warm {
		named[id] = true
	}
	exists := func(id string) bool { return slices.Contains(machines, id) }
	for _, id := range machines {
		if text, err := os.ReadFile(filepath.Join(n.state, machinesDir, id, "machine.json")); err == nil {
			for _, d := range digestText.FindAllString(string(text), -1) {
				digests["sha256:"+d] = true
			}
		}
	}
	for _, name := range records {
		named[strings.TrimSuffix(name, recordSuffix)] = true // also that of a machine that is gone
	}

	if _, err := n.collector(n).Collect(t.Context(), opts); err != nil {
		t.Fatalf("collect: %v", err)
	}
	check := func(what string, gone, needed bool, last time.Time) {
		t.Helper()
		kind, _, _ := strings.Cut(what, " ")
		if gone {
			n.went[kind]++
		} else if needed {
			n.kept[kind]++
		}
		switch age := n.now.Sub(last); {
		case gone && needed:
			t.Errorf("%s is gone and was needed", what)
		case gone && age < opts.Grace:
			t.Errorf("%s is gone after %v with %v grace", what, age, opts.Grace)
		case !gone && !needed && age >= max(opts.Grace, settle):
			t.Errorf("%s was not needed for %v and is kept with %v grace", what, age, opts.Grace)
		}
	}
	for _, uid := range pods {
		_, recorded := n.pods[uid]
		check("pod "+uid, !n.exists(podsDir, uid), recorded, n.changed[filepath.Join(podsDir, uid)])
		if recorded && !n.exists(podsDir, uid, "logs", "main", "0.log") {
			t.Errorf("the log of pod %s is gone", uid)
		}
	}
	for _, name := range records {
		id := strings.TrimSuffix(name, recordSuffix)
		check("record "+name, !n.exists(warmDir, name), exists(id) || slices.Contains(n.accounted, id), n.changed[filepath.Join(warmDir, name)])
		if !n.exists(warmDir, name) {
			delete(n.warm, id)
		}
	}
	for _, id := range machines {
		check("machine "+id, !n.exists(machinesDir, id), named[id] || slices.Contains(n.accounted, id), n.changed[filepath.Join(machinesDir, id)])
	}
	kept := map[string]bool{} // images of snapshots that stayed
	for _, i := range before {
		var needed bool
		path, last := []string{"snapshots", i.Name}, n.used[i.Key]
		if i.Status == snapshot.StatusQuarantined {
			path, last = []string{"snapshots", ".quarantine", i.Name}, i.LastUsed
			pin := n.pins[i.Key] // of the set that had this name
			needed = pin != nil && pin.Manifest().Instance == i.Manifest.Instance
		} else {
			needed = n.pins[i.Key] != nil && i.Pins > 0 || slices.Contains(n.wanted, i.Key) || !n.complete && i.Manifest.Template != nil
		}
		for id := range n.machines {
			if r, ok := n.snapshots.Reference(id); ok && r.Instance == i.Manifest.Instance {
				needed = true
			}
		}
		gone := !n.exists(path...)
		check("snapshot "+i.Name, gone, needed, last)
		if gone {
			continue
		}
		for _, m := range i.Manifest.Members {
			if !n.exists(append(slices.Clone(path), m.Name)...) {
				t.Errorf("snapshot %s has lost %s", i.Name, m.Name)
			}
		}
		if i.Status == snapshot.StatusReady && i.Manifest.Template != nil {
			kept[i.Manifest.Template.Images[0].Digest] = true
		}
	}
	for _, i := range present {
		hex := strings.TrimPrefix(i.Digest, "sha256:")
		check("image "+hex, !n.exists("images", hex), digests[i.Digest] || kept[i.Digest] || n.pinned(i.Digest, ""), n.used[i.Digest])
	}
	for _, dir := range []string{"snapshots", "images"} {
		for _, name := range n.names(dir) {
			if strings.HasPrefix(name, ".removing") || strings.HasPrefix(name, ".trash") {
				t.Errorf("%s/%s is left", dir, name)
			}
		}
	}
}
