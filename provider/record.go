// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/clock"
)

// recordVersion is the version of the format of pod.json. A record of another
// version is not read: its pod's machine is then reaped as an orphan.
const recordVersion = 1

// recordFile is the name of a pod's record in its directory.
const recordFile = "pod.json"

// record is what has to be known about a pod after the node process died. It is
// written before the act it speaks of.
type record struct {
	Version   int         `json:"version"`
	Pod       *corev1.Pod `json:"pod"`
	StartTime time.Time   `json:"startTime"`
	Finished  bool        `json:"finished,omitempty"`
	Refusal   *refusal    `json:"refusal,omitempty"`
	Kill      *killRecord `json:"kill,omitempty"`
	// Template as it was at admission.
	Template *Template     `json:"template,omitempty"`
	Images   []imageRecord `json:"images,omitempty"`
	Machine  machineRecord `json:"machine"`
	// Containers in the order of the pod.
	Containers []containerRecord `json:"containers,omitempty"`
}

type imageRecord struct {
	Ref    string     `json:"ref"`
	Policy PullPolicy `json:"policy"`
	Digest string     `json:"digest"`
	ID     string     `json:"id"`
}

type machineRecord struct {
	Generation int      `json:"generation"`
	ID         string   `json:"id,omitempty"` // empty: the pod has no machine
	Shape      vm.Shape `json:"shape"`
	Budget     Budget   `json:"budget"`
	Path       string   `json:"path,omitempty"`
	Acquired   bool     `json:"acquired,omitempty"`
	Prepared   bool     `json:"prepared,omitempty"`
	Passed     int      `json:"passed,omitempty"`
	Images     []string `json:"images,omitempty"` // digests by slot
	Files      []string `json:"files,omitempty"`  // their disks
}

// killRecord is a pod that is to end although nobody deletes it.
type killRecord struct {
	Settled bool          `json:"settled,omitempty"`
	Reason  string        `json:"reason,omitempty"`
	Message string        `json:"message,omitempty"`
	Since   time.Time     `json:"since"`
	Grace   time.Duration `json:"grace,omitempty"`
}

func (k *podKill) record() *killRecord {
	if k == nil {
		return nil
	}
	return &killRecord{Settled: k.settled, Reason: k.reason, Message: k.message, Since: k.since, Grace: k.grace}
}

func (r *killRecord) state(now time.Time) *podKill {
	if r == nil {
		return nil
	}
	return &podKill{settled: r.Settled, reason: r.Reason, message: r.Message, ending: ending{since: clock.Anchor(r.Since, now), grace: r.Grace}}
}

// stopRecord is a run that is to end while its pod goes on.
type stopRecord struct {
	Since   time.Time     `json:"since"`
	Grace   time.Duration `json:"grace,omitempty"`
	Message string        `json:"message,omitempty"`
	Again   bool          `json:"again,omitempty"`
}

func (s *containerStop) record() *stopRecord {
	if s == nil {
		return nil
	}
	return &stopRecord{Since: s.since, Grace: s.grace, Message: s.message, Again: s.again}
}

func (r *stopRecord) state(now time.Time) *containerStop {
	if r == nil {
		return nil
	}
	return &containerStop{since: clock.Anchor(r.Since, now), grace: r.Grace, message: r.Message, again: r.Again}
}

type containerRecord struct {
	Name    string `json:"name"`
	Attempt int    `json:"attempt"`
	// Begun: a create of this attempt was, or is about to be, asked for.
	Begun       bool         `json:"begun,omitempty"`
	EverStarted bool         `json:"everStarted,omitempty"`
	StartedAt   time.Time    `json:"startedAt,omitzero"`
	PostStarted bool         `json:"postStarted,omitempty"`
	Probes      *probeRecord `json:"probes,omitempty"`
	Stop        *stopRecord  `json:"stop,omitempty"`
	Exit        *termination `json:"exit,omitempty"`
	Last        *termination `json:"last,omitempty"`
	Drained     bool         `json:"drained,omitempty"`
	Backoff     backoff      `json:"backoff,omitzero"`
	NotBefore   time.Time    `json:"notBefore,omitzero"`
	// Allocated is what the node granted, Applied what the run has of it.
	Allocated *corev1.ResourceRequirements `json:"allocated,omitempty"`
	Applied   *corev1.ResourceRequirements `json:"applied,omitempty"`
}

// records keeps a directory per pod: <dir>/<uid>/pod.json.
type records struct{ dir string }

// save writes a record in one step: after a crash the file is the old or the new one.
func (r records) save(rec *record) error {
	rec.Version = recordVersion
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode record of pod %q: %w", rec.Pod.UID, err)
	}
	dir := filepath.Join(r.dir, string(rec.Pod.UID))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of pod %q: %w", rec.Pod.UID, err)
	}
	if err := replaceFile(filepath.Join(dir, recordFile), data); err != nil {
		return fmt.Errorf("write record of pod %q: %w", rec.Pod.UID, err)
	}
	return nil
}

// replaceFile writes data to path by way of a synced temporary file.
func replaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close() // harmless when it is closed already
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// remove deletes a pod's directory and everything in it. Idempotent.
func (r records) remove(uid types.UID) error {
	if err := os.RemoveAll(filepath.Join(r.dir, string(uid))); err != nil {
		return fmt.Errorf("remove directory of pod %q: %w", uid, err)
	}
	return nil
}

// load reads all records. One that cannot be read is reported among the faults and
// does not hide the others.
func (r records) load() (recs []*record, faults []error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{fmt.Errorf("list pod records: %w", err)}
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		rec, err := r.read(e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist): // died before the first record, or in the middle of a removal
			if err := r.remove(types.UID(e.Name())); err != nil {
				faults = append(faults, err)
			}
		case err != nil:
			faults = append(faults, fmt.Errorf("read record of pod %q: %w", e.Name(), err))
		default:
			recs = append(recs, rec)
		}
	}
	return recs, faults
}

func (r records) read(uid string) (*record, error) {
	data, err := os.ReadFile(filepath.Join(r.dir, uid, recordFile))
	if err != nil {
		return nil, err
	}
	rec := &record{}
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, err
	}
	if rec.Version != recordVersion {
		return nil, fmt.Errorf("format version %d, this program reads %d", rec.Version, recordVersion)
	}
	if rec.Pod == nil || string(rec.Pod.UID) != uid {
		return nil, fmt.Errorf("record is not of pod %q", uid)
	}
	return rec, nil
}

// recordOf is the record of a state.
func recordOf(s *state) *record {
	rec := &record{
		Pod: s.pod, StartTime: s.startTime, Refusal: s.refusal, Kill: s.kill.record(),
		Finished: s.stage == stageFinished,
		Machine: machineRecord{
			Generation: s.machine.generation, ID: s.machine.id, Shape: s.machine.shape, Budget: s.machine.budget, Path: s.machine.path,
			Acquired: s.machine.acquired, Prepared: s.machine.prepared, Passed: s.machine.passed, Images: s.machine.slots, Files: s.machine.files,
		},
	}
	if s.plan != nil {
		rec.Template = s.plan.template
		for _, key := range imagesOf(s) {
			if img := s.images[key].image; img != nil {
				rec.Images = append(rec.Images, imageRecord{Ref: key.ref, Policy: key.policy, Digest: img.Digest, ID: img.ID})
			}
		}
	}
	for _, c := range s.containers {
		rec.Containers = append(rec.Containers, containerRecord{
			Name: c.name, Attempt: c.attempt, Begun: c.step != containerWaiting, EverStarted: c.everStarted, StartedAt: c.startedAt,
			PostStarted: c.postStart == hookOver, Probes: c.probes.record(c.attempt), Stop: c.stop.record(), Exit: c.exit, Last: c.last, Drained: c.drained, Backoff: c.backoff, NotBefore: c.notBefore,
			Allocated: s.allocated(c.name), Applied: c.resize.applied,
		})
	}
	return rec
}
