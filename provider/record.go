// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/clock"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// recordFile is the name of a pod's record in its directory.
const recordFile = "pod.json"

// record is what has to be known about a pod after the node process died. It is
// written before the act it speaks of.
type record struct {
	durable.Header
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

// maxRecordBytes bounds a pod's record: the API server takes objects of up to 1.5 MiB.
const maxRecordBytes = 4 << 20

// recordFormat is how a pod's record is on disk. The machine of a pod whose record cannot
// be read is quarantined, see heldPod.
var recordFormat = durable.NewFormat(durable.FormatOptions[record]{
	Kind: "pod", Version: 1, MaxBytes: maxRecordBytes,
	Lenient: true, // the pod in it may be of another Kubernetes
	Check: func(r *record) error {
		if r.Pod == nil {
			return errors.New("no pod")
		}
		return nil
	},
})

// records keeps a directory per pod: <dir>/<uid>/pod.json.
type records struct{ *durable.Store[record] }

func newRecords(dir string, fsys durable.FS) records {
	return records{durable.NewStore(durable.StoreOptions[record]{
		FS: fsys, Dir: dir, Layout: durable.Layout{File: recordFile}, Format: recordFormat, How: durable.Synced,
		IDOf: func(r *record) string { return string(r.Pod.UID) },
	})}
}

// save writes a record in one step: after a crash the file is the old or the new one.
func (r records) save(rec *record) error {
	if err := r.Write(string(rec.Pod.UID), *rec); err != nil {
		return fmt.Errorf("write record of pod %q: %w", rec.Pod.UID, err)
	}
	return nil
}

// remove deletes a pod's directory and everything in it. Idempotent.
func (r records) remove(uid types.UID) error {
	if err := r.Discard(string(uid)); err != nil {
		return fmt.Errorf("remove directory of pod %q: %w", uid, err)
	}
	return nil
}

// forget deletes a pod's record and leaves its logs. Idempotent.
func (r records) forget(uid types.UID) error {
	if err := r.Forget(string(uid)); err != nil {
		return fmt.Errorf("remove record of pod %q: %w", uid, err)
	}
	return nil
}

// brokenRecord is a record that cannot be read.
type brokenRecord struct {
	uid types.UID
	err error
}

// load reads all records. Those that cannot be read stay, and do not hide the others.
func (r records) load() (recs []*record, broken []brokenRecord, err error) {
	all, faults, err := r.Load()
	if err != nil {
		return nil, nil, fmt.Errorf("list pod records: %w", err)
	}
	for i := range all {
		recs = append(recs, &all[i])
	}
	for _, f := range faults {
		broken = append(broken, brokenRecord{uid: types.UID(f.ID), err: f.Err})
	}
	return recs, broken, nil
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
