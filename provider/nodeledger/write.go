// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// report writes the status when it has changed, until ctx ends: at most once a second,
// whatever happens meanwhile goes into the next one.
func (k *Keeper) report(ctx context.Context) {
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.bell:
		}
		wrote, err := k.reportOnce(ctx)
		switch {
		case err != nil:
			failures++
			if failures == 1 {
				k.log.Warn("Ledger could not be reported, trying again", "err", err)
			}
			ring(k.bell)
			if !sleep(ctx, backoff(failures)) {
				return
			}
		case wrote:
			if failures > 0 {
				k.log.Info("Ledger is reported again", "failures", failures)
			}
			failures = 0
			if !sleep(ctx, reportEvery) {
				return
			}
		}
	}
}

// backoff is the pause after so many failures.
func backoff(failures int) time.Duration {
	d := reportRetryFirst
	for i := 1; i < failures && d < reportRetryMax; i++ {
		d *= 2
	}
	return min(d, reportRetryMax)
}

// sleep waits for d and reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// conflictTries bounds how often a status is computed anew because the controller
// wrote the specification meanwhile.
const conflictTries = 5

// reportOnce brings the status up to date. wrote: the API server was asked to change something.
func (k *Keeper) reportOnce(ctx context.Context) (wrote bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	k.mu.Lock()
	ledger, listed := k.current, k.listed
	k.mu.Unlock()
	if !listed {
		return false, nil // the API server has not said anything: its CRDs may be missing
	}
	if ledger == nil {
		if ledger, err = k.create(ctx); err != nil {
			return true, err
		}
		wrote = true
	}
	for range conflictTries {
		k.mu.Lock()
		r := report{generation: k.applied.generation, faults: k.applied.faults}
		k.mu.Unlock()
		r.status = k.opts.Supply.Status()
		status := statusOf(r, &ledger.Status, time.Now())
		if equality.Semantic.DeepEqual(&ledger.Status, &status) {
			return wrote, nil
		}
		next := ledger.DeepCopy()
		next.Status = status
		wrote = true
		got, err := k.opts.API.UpdateLedgerStatus(ctx, next)
		switch {
		case err == nil:
			k.wrote(ledger, got)
			return true, nil
		case apierrors.IsNotFound(err):
			k.wrote(ledger, nil)
			return true, fmt.Errorf("report ledger: it was deleted: %w", err)
		case !apierrors.IsConflict(err):
			return true, fmt.Errorf("report ledger: %w", err)
		}
		if ledger, err = k.opts.API.GetLedger(ctx, k.opts.NodeName); err != nil {
			return true, fmt.Errorf("read ledger after a conflict: %w", err)
		}
	}
	return true, fmt.Errorf("report ledger: changed by others %d times in a row", conflictTries)
}

// wrote takes in what the API server answered, unless the watch has been quicker.
func (k *Keeper) wrote(before, after *v1alpha1.NodeLedger) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current == nil || k.current.ResourceVersion == before.ResourceVersion {
		k.current = after
	}
}

// create makes the node's ledger. The Node owns it: when it goes, so does the ledger.
func (k *Keeper) create(ctx context.Context) (*v1alpha1.NodeLedger, error) {
	uid, err := k.opts.API.NodeUID(ctx, k.opts.NodeName)
	if err != nil {
		return nil, fmt.Errorf("find the node that is to own the ledger: %w", err)
	}
	got, err := k.opts.API.CreateLedger(ctx, &v1alpha1.NodeLedger{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "NodeLedger"},
		ObjectMeta: metav1.ObjectMeta{Name: k.opts.NodeName, OwnerReferences: []metav1.OwnerReference{
			{APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Node", Name: k.opts.NodeName, UID: uid}}},
	})
	if apierrors.IsAlreadyExists(err) { // the watch is behind
		got, err = k.opts.API.GetLedger(ctx, k.opts.NodeName)
	}
	if err != nil {
		return nil, fmt.Errorf("create ledger: %w", err)
	}
	return got, nil
}
