// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm"
)

// stage is where a worker is. It only grows.
type stage int

const (
	stageSyncing stage = iota
	stageFinished
	stageTerminating
	stageTerminated
)

func (s stage) String() string {
	return [...]string{"syncing", "finished", "terminating", "terminated"}[s]
}

// state is everything a worker knows. Only the worker's loop touches it.
type state struct {
	pod   *corev1.Pod
	stage stage
	// refusal is set when the pod cannot run on this node at all.
	refusal *refusal
	// waiting is set, and plan is not, while the pod's template is not there.
	waiting *templateWait
	plan    *plan
	// startTime is when the node first saw the pod.
	startTime  time.Time
	images     map[imageKey]*imageState
	machine    machineState
	containers []*containerState
	// deletion is set when the pod is to go.
	deletion *deletion
	// kill is set when the pod is to end although nobody deletes it.
	kill *podKill
	// resizeRefusal is why the pod cannot have the resources that it wants now.
	resizeRefusal string
	// unrecorded is set while the record on disk is not what the state is, as it could not
	// be written: nothing is begun then that the next process would have to know of.
	unrecorded *unrecorded
}

// unrecorded is a record that could not be written.
type unrecorded struct {
	message  string
	failures int
	retryAt  time.Time
}

// mayBegin: something may be begun now, for which the record is written first.
func (s *state) mayBegin(now time.Time, d *decision) bool {
	u := s.unrecorded
	if u == nil || !now.Before(u.retryAt) {
		return true
	}
	d.wakeAt(u.retryAt)
	return false
}

// refusal is why a pod was not admitted, as the pod's status shows it.
type refusal struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

type deletion struct {
	ending
	// cleaning: files, record and API object are being removed.
	cleaning bool
	retryAt  time.Time
	failures int
}

// imageKey tells images of a pod apart.
type imageKey struct {
	ref    string
	policy PullPolicy
}

type imageState struct {
	image   *Image
	pulling bool
	// reason and message of the last failed try, in the kubelet's words.
	reason, message string
	failures        int
	retryAt         time.Time
	// backOffSaid: the event of the back-off was sent for this failure.
	backOffSaid bool
	// fatal: trying again will not help as long as the pod is as it is.
	fatal bool
}

// machineStep is where the pod's machine is.
type machineStep int

const (
	machineNone machineStep = iota
	machineAcquiring
	machineAdopting
	machineHeld
	machineReleasing
)

type machineState struct {
	// generation counts the machines of the pod from 1; 0 before the first.
	generation int
	step       machineStep
	id         string
	shape      vm.Shape
	budget     Budget
	path       string
	// slots are the digests of the images in the machine's slots, files their disks.
	slots, files []string
	// acquired: an Acquire for this generation succeeded, as the record has it.
	acquired bool
	// prepared: pod and volumes are set up in this machine.
	prepared  bool
	preparing bool
	// adopt: an earlier process left this machine; it must be adopted or reaped.
	adopt bool
	// lost is why the machine cannot be used any more; it is to be released.
	lost *loss
	// passed is how many of the leading init containers and sidecars need not be waited for
	// in this machine: see progress.
	passed int
	// synced: the watch has sent what containers exist.
	synced bool

	reason, message string
	failures        int
	retryAt         time.Time
}

// loss is how a pod lost its machine.
type loss struct {
	reason, message string
	at              time.Time
}

// containerStep is where a container of the pod is.
type containerStep int

const (
	// containerWaiting: it has no run, or the run is to be followed by another.
	containerWaiting containerStep = iota
	// containerStarting: a create or start is under way.
	containerStarting
	// containerUnknown: an earlier process began or had it; the machine will tell.
	containerUnknown
	containerRunning
	containerExited
)

type containerState struct {
	name string
	// attempt counts the runs from 0; it is that of the next run while waiting.
	attempt int
	step    containerStep
	// everStarted: some run of it has started.
	everStarted bool

	startedAt time.Time
	// exit is how the current run ended (step exited).
	exit *termination
	// last is how the run before ended.
	last *termination
	// drained: the output of the current run is complete on disk.
	drained bool
	copying bool
	// drainBy is when the pod goes on without the rest of the output.
	drainBy time.Time

	// reason and message of waiting, other than by back-off.
	reason, message string
	failures        int
	backoff         backoff
	// notBefore is when the next run or the next try may begin.
	notBefore time.Time

	// asked is when this process began to start the current run; zero for one that it adopted.
	asked time.Time
	// requested, answered are when this process asked for the current run, and had the
	// answer that it runs; heard is when its first output came. For measurements.
	requested, answered, heard time.Time

	// postStart and preStop are where the run's hooks are.
	postStart, preStop hookState
	// cancelHook ends the hook that runs; nil for none.
	cancelHook context.CancelFunc
	// stopSent, killSent: the signal went out for this run; stopAt is when.
	stopSent, killSent bool
	stopAt             time.Time
	// stop is set while the run is to end and the pod goes on.
	stop   *containerStop
	resize resizeState
	// probes are those of the run of the attempt that it names.
	probes probing
}

// termination is how a run ended.
type termination struct {
	Attempt    int       `json:"attempt"`
	ID         string    `json:"id"`
	ExitCode   int32     `json:"exitCode"`
	Signal     int32     `json:"signal,omitempty"`
	Reason     string    `json:"reason"`
	Message    string    `json:"message,omitempty"`
	StartedAt  time.Time `json:"startedAt"`
	FinishedAt time.Time `json:"finishedAt"`
	// Again: the node ended the run for another to follow, however it ended.
	Again bool `json:"again,omitempty"`
}

// hookState is where a lifecycle hook of a run is.
type hookState int

const (
	hookNone hookState = iota // not begun, or there is none
	hookRunning
	hookOver
	// hookFailed: a postStart hook that failed. Its run is to end.
	hookFailed
)
