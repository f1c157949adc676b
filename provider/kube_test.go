// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// A pod whose deletion the watch missed ends like any other that is gone.
func TestMissedDeletionEndsThePod(t *testing.T) {
	s := testState(corev1.RestartPolicyNever, 1)
	w := newWorker(&environment{log: slog.New(slog.DiscardHandler)}, *s)
	p := &Provider{workers: map[types.UID]*worker{s.pod.UID: w}}
	p.podGone(cache.DeletedFinalStateUnknown{Key: "ns/pod", Obj: s.pod})
	for _, f := range w.take() {
		f(&w.s)
	}
	if w.s.deletion == nil || w.s.deletion.grace != goneGrace {
		t.Errorf("deletion is %+v", w.s.deletion)
	}
	p.podGone(cache.DeletedFinalStateUnknown{Key: "ns/unknown"}) // nothing is known: nothing to do
}

// A status is tried until the API server takes it, however long that is away.
func TestStatusIsNeverForgotten(t *testing.T) {
	if _, err := keepTrying(t.Context(), "ns/pod", 1000, time.Time{}, errors.New("connection refused")); err != nil {
		t.Error(err)
	}
}
